"""The page of a report: HTML that needs no network."""

import json
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from gradflow.files import write_text
from gradflow.present import plots
from gradflow.present.markdown import markdown
from gradflow.present.report import interactive
from gradflow.present.report.content import Report, collect
from gradflow.present.report.numbers import data_uri, to_json
from gradflow.present.report.saliency import SaliencyPicture, webp
from gradflow.present.report.story import charts, story
from gradflow.present.section import Chart, Section
from gradflow.training.index import write_index
from gradflow.training.rundir import RunDir

REPORT = "report"  # the page, where no other name is asked for
GENERATOR = b'<meta name="generator" content="gradflow">'  # by which a page is known as a report


def html(sections: Sequence[Section], *, static: bool = False) -> str:
    """One page with everything in it. With `static` without plotly.js: every figure is an SVG."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradflow.present.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["typed"] = _typed
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.filters["drawn"] = lambda picture: _drawn(picture, static)
    answer, *rest = sections
    return environment.get_template("template.html.j2").render(
        answer=answer,
        sections=rest,
        library=None if static else Markup(interactive.library()),  # noqa: S704 plotly's own file
        date=date.today().isoformat(),
    )


def page_path(runs: Sequence[Path], path: Path | None) -> Path:
    """Where the page goes, by default into the first run; a name without a suffix gets .html.

    Raises ValueError for another suffix, and where a file stands in its way that is not of an
    earlier report: data.json of a run, or notes.md of the reader's.
    """
    if path is None:
        return runs[0] / "report.html"
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

    The figures of report.html go into `figures`, as a run's others do; those of page.html into
    `page-figures`. The page comes last: where it is, the rest is whole.
    """
    own = "figures" if path.stem == REPORT else f"{path.stem}-figures"
    folder = path.with_name(own)
    path.parent.mkdir(parents=True, exist_ok=True)
    page, text, numbers_ = _pages(path)
    sections = story(report, found)
    contents = {
        numbers_: json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        text: markdown(sections, folder.name),
        page: html(sections, static=static),
    }
    for chart in found:
        if chart.is_drawn:
            plots.save_in_both_themes(chart.draw_with_title, folder, chart.key)
    for picture in report.saliency:
        picture.copy_to(folder)
    for file, content in contents.items():
        write_text(file, content)
    write_index(path.parent)
    return [page, text, numbers_, folder]


def report(
    runs: RunDir | Path | str | Sequence[Path | str], output: Path | str | None = None
) -> Path:
    """Write the report of runs, as `gradflow report`; by default into the first run's folder.

    Beside the page stand the same as Markdown and JSON, and its figures. Returns the page. Raises
    FileNotFoundError, ValueError.
    """
    several = [runs] if isinstance(runs, RunDir | Path | str) else runs
    folders = [one.path if isinstance(one, RunDir) else Path(one) for one in several]
    path = page_path(folders, None if output is None else Path(output))
    content = collect(folders)
    return write(content, charts(content), path)[0]


def _drawn(picture: Chart, static: bool) -> Markup:
    if isinstance(picture, SaliencyPicture):
        light = data_uri(webp(picture.path), "webp")
        dark = None if picture.dark is None else data_uri(webp(picture.dark), "webp")
        return _picture(light, dark, picture.title)
    if picture.interact is not None and not static:
        written = interactive.to_html(picture.key, picture.interact())
        return Markup(written)  # noqa: S704 plotly escapes for <script>
    if not picture.is_drawn:
        return Markup("")
    light, dark = (
        data_uri(plots.to_svg(figure), "svg+xml")
        for _, figure in plots.in_both_themes(picture.draw)
    )
    return _picture(light, dark, picture.title)


def _picture(light: str, dark: str | None, title: str) -> Markup:
    """A picture that is light or dark as the page is; light alone where there is no dark one."""
    image = Markup('<img src="{}" alt="{}">').format(light, title)
    if dark is None:
        return image
    return Markup(
        '<picture><source srcset="{}" media="(prefers-color-scheme: dark)">{}</picture>'
    ).format(dark, image)


def _typed(text: str) -> Markup:
    """Escaped, and what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704
