"""The page of a report: HTML that needs no network; and the same as JSON."""

import json
import math
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from gradflow.files import write_text
from gradflow.present import plots
from gradflow.present.report import interactive
from gradflow.present.report.chart import SECTIONS, Chart, save_charts
from gradflow.present.report.content import Report
from gradflow.present.report.markdown import markdown
from gradflow.present.report.numbers import numbers
from gradflow.present.report.rows import (
    accuracy_rows,
    arm_rows,
    class_rows,
    data_uri,
    mistakes,
    photos_of_test_set,
    seed_rows,
)
from gradflow.present.report.saliency import NO_MAPS, SaliencyPicture, webp
from gradflow.present.report.words import (
    again,
    commands,
    data_lines,
    differs,
    how_sure,
    mcnemar_lines,
    outcome,
    published_lines,
    question,
    reasons,
    sentences,
    setting,
    status,
)
from gradflow.present.study_view import all_checks, gap_lines, remarks

GENERATOR = b'<meta name="generator" content="gradflow">'  # by which a page is known as a report
SIGNATURE = "gradient-profiles"  # the figure that stands on the first screen


def html(report: Report, found: Sequence[Chart], *, static: bool = False) -> str:
    """One page with everything in it. With `static` without plotly.js: every figure is an SVG."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradflow.present.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = _code
    photos, no_photos = photos_of_test_set(report)
    drawn = [(chart, _body(chart, static)) for chart in found]
    return environment.get_template("template.html.j2").render(
        report=report,
        verdict=report.verdict,
        **_answer(report),
        sections=SECTIONS,
        signature=[pair for pair in drawn if pair[0].key == SIGNATURE],
        charts={
            section: [
                pair for pair in drawn if pair[0].section == section and pair[0].key != SIGNATURE
            ]
            for section in SECTIONS
        },
        library=None if static else Markup(interactive.library()),  # noqa: S704 plotly's own file
        findings=[] if report.verdict is None else [
            (one, status(one), reasons(one))
            for one in (*report.verdict.links, *report.verdict.rivals)
        ],
        mistakes=mistakes(report, photos),
        no_photos=no_photos,
        arms=arm_rows(report),
        gaps=[] if report.study is None else gap_lines(report.study),
        study_remarks=[] if report.study is None else remarks(report.study),
        checks=[] if report.study is None else all_checks(report.study),
        again=again(report),
        saliency=[(one, _maps_in_page(one)) for one in report.saliency],
        no_maps=NO_MAPS,
        date=date.today().isoformat(),
    )  # fmt: skip


def to_json(report: Report) -> dict[str, Any]:
    """The numbers of the page, as plain JSON types."""
    content: dict[str, Any] = _finite(
        _answer(report)
        | numbers(report)
        | {
            "mcnemar": report.mcnemar(),
            "mistakes": mistakes(report),
            "verdict": None if report.verdict is None else report.verdict.to_json(),
            "study": None if report.study is None else report.study.to_json(),
            "comparisons": [one.to_json() for one in report.comparisons],
            "config": report.config,
            "environments": list(report.environments),
            "missing": list(report.missing),
        }
    )
    return content


def page_path(path: Path) -> Path:
    """Where the page goes; a name without a suffix gets .html.

    Raises ValueError for another suffix, and where a file stands in its way that is not of an
    earlier report: data.json of a run, or notes.md of the reader's.
    """
    if path.suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(
            f"Expected the name of a page, which ends in .html, but got {path.name}. Markdown and "
            "JSON are written beside it under the same name."
        )
    path = path if path.suffix else path.with_suffix(".html")
    taken = [one for one in _pages(path) if one.exists()]
    if taken and not (path.is_file() and GENERATOR in path.read_bytes()[:1000]):
        raise ValueError(
            f"Expected a new name, or that of an earlier report, but {taken[0]} is there and is "
            "no part of one. Give another --output."
        )
    return path


def _pages(path: Path) -> tuple[Path, Path, Path]:
    return path, path.with_suffix(".md"), path.with_suffix(".json")


def write(
    report: Report, found: Sequence[Chart], path: Path, *, static: bool = False
) -> list[Path]:
    """Write the page to `path`, and Markdown, JSON and every figure beside it.

    The page comes last: where it is, the rest is whole.
    """
    folder = path.with_name(f"{path.stem}-figures")
    path.parent.mkdir(parents=True, exist_ok=True)
    page, text, numbers_ = _pages(path)
    contents = {
        numbers_: json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        text: markdown(report, found, folder.name),
        page: html(report, found, static=static),
    }
    save_charts(found, folder)
    for picture in report.saliency:
        picture.copy_to(folder)
    for file, content in contents.items():
        write_text(file, content)
    return [page, text, numbers_, folder]


def _answer(report: Report) -> dict[str, Any]:
    """What the page and the JSON have in common."""
    word, meaning = outcome(report)
    return {
        "question": question(report),
        "setting": setting(report),
        "changed": report.changed,
        "outcome": word,
        "meaning": meaning,
        "sentences": list(sentences(report)),
        "how_sure": how_sure(report),
        "differs": differs(report),
        "accuracy": accuracy_rows(report),
        "over_seeds": seed_rows(report),
        "mcnemar_lines": mcnemar_lines(report),
        "published": published_lines(report),
        "classes": class_rows(report),
        "data": data_lines(report),
        "commands": commands(report),
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _body(chart: Chart, static: bool) -> Markup:
    if chart.interact is not None and not static:
        return Markup(chart.interact())  # noqa: S704 plotly escapes for <script>
    if chart.draw is None:
        return Markup("")
    light, dark = (
        data_uri(plots.to_svg(figure), "svg+xml") for _, figure in plots.in_both_themes(chart.draw)
    )
    return _picture(light, dark, chart.title)


def _maps_in_page(picture: SaliencyPicture) -> Markup:
    light = data_uri(webp(picture.path), "webp")
    dark = None if picture.dark is None else data_uri(webp(picture.dark), "webp")
    return _picture(light, dark, picture.heading)


def _picture(light: str, dark: str | None, title: str) -> Markup:
    """A picture that is light or dark as the page is; light alone where there is no dark one."""
    image = Markup('<img src="{}" alt="{}">').format(light, title)
    if dark is None:
        return image
    return Markup(
        '<picture><source srcset="{}" media="(prefers-color-scheme: dark)">{}</picture>'
    ).format(dark, image)


def _code(text: str) -> Markup:
    """Escaped, and what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704
