"""The pages of a report: HTML that needs no network, Markdown, and JSON."""

import base64
import io
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from gradflow.analysis.compare import MEANINGS
from gradflow.analysis.findings import Finding
from gradflow.analysis.statistics import Interval
from gradflow.analysis.verdict import OUTCOMES
from gradflow.present import plots
from gradflow.present.letter import RIVAL_STATUS, question
from gradflow.present.report import interactive
from gradflow.present.report.charts import Chart, evaluated, save_charts
from gradflow.present.report.content import Report
from gradflow.training.classes import worst_mistakes
from gradflow.training.original import published

N_MISTAKES = 6  # per network
THUMBNAIL = 128  # pixels
SECTIONS = {
    "gradients": "Gradients by depth",
    "activations": "Activations by depth",
    "updates": "Updates by depth",
    "training": "Loss and accuracy",
    "classes": "Classes",
}


def html(report: Report, found: Sequence[Chart], *, static: bool = False) -> str:
    """One page with everything in it. With `static` without plotly.js: every figure is an SVG."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradflow.present.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("template.html.j2").render(
        report=report,
        verdict=report.verdict,
        question=question(report.verdict),
        meaning=OUTCOMES[report.verdict.outcome],
        how_sure=how_sure(report),
        differs=differs(report),
        sections=SECTIONS,
        charts={
            section: [(chart, _body(chart, static)) for chart in found if chart.section == section]
            for section in SECTIONS
        },
        library=None if static else Markup(interactive.library()),  # noqa: S704 plotly's own file
        accuracy=accuracy_rows(report),
        mcnemar=report.mcnemar(),
        reports=class_rows(report),
        findings=[(one, _status(one)) for one in (*report.verdict.links, *report.verdict.rivals)],
        mistakes=mistakes(report),
        saliency=[(path.stem, _uri(path.read_bytes(), "png")) for path in report.saliency],
        date=date.today().isoformat(),
    )


def to_json(report: Report) -> dict[str, Any]:
    """The numbers of the page, as plain JSON types."""
    return {
        "question": question(report.verdict),
        "how_sure": how_sure(report),
        "differs": differs(report),
        "verdict": report.verdict.to_json(),
        "comparisons": [one.to_json() for one in report.comparisons],
        "accuracy": accuracy_rows(report),
        "mcnemar": report.mcnemar(),
        "config": report.config,
        "environment": report.environment,
        "missing": list(report.missing),
    }


def markdown(report: Report, found: Sequence[Chart], folder: str) -> str:
    """The same for a README or an issue; the figures stand in `folder` beside it."""
    verdict = report.verdict
    lines = [
        f"# {question(verdict)}",
        f"**{verdict.outcome}**: {OUTCOMES[verdict.outcome]}.",
        *verdict.sentences,
        how_sure(report),
        differs(report),
        *report.missing,
    ]
    for section, heading in SECTIONS.items():
        pictures = [chart for chart in found if chart.section == section]
        if pictures:
            lines.append(f"## {heading}")
        for chart in pictures:
            lines += [
                f"![{chart.title}]({folder}/{chart.key}.png)",
                f"*{chart.title}.* {chart.caption}",
            ]
    lines += ["## Why", *(f"- {one.key}, {one.title}: {_status(one)}. {one.question}"
                          for one in (*verdict.links, *verdict.rivals))]  # fmt: skip
    if accuracy := accuracy_rows(report):
        lines += ["## Accuracy on test images", _markdown_table(accuracy)]
    lines += ["## Next", *(f"{i}. {step}" for i, step in enumerate(verdict.next_steps, start=1))]
    return "\n\n".join(line for line in lines if line) + "\n"


def how_sure(report: Report) -> str:
    """What the answer rests on: seeds, intervals, and the instrument."""
    verdict = report.verdict
    n = len(verdict.case.seeds)
    seeds = (
        f"{n} trainings of each network, paired by seed; every interval is 95 % over seeds, and "
        "the tests of one family are corrected by Holm's method"
        if n > 1
        else "one training: a description, from which nothing can be concluded"
    )
    gate = verdict.instrument
    if gate is None:
        return f"It rests on {seeds}."
    return (
        f"It rests on {seeds}. On networks whose truth is known, gradflow recognised "
        f"{gate.hit_rate:.0%} of the vanishing and exploding ones on this machine, with "
        f"{gate.false_alarm_rate:.0%} false alarms."
    )


def differs(report: Report) -> str:
    """Which layer differs most, by how much, and whether that is more than chance."""
    found = report.largest_difference
    if found is None:
        return ""
    comparison, layer = found
    n = sum(one.differs for one in comparison.layers)
    sure = (
        f"{n} of {len(comparison.layers)} layers differ beyond chance"
        if len(comparison.seeds) >= 3
        else "with fewer than three seeds this may be chance"
    )
    return (
        f"The two networks differ most at {layer.layer}: there δ is {layer.factor:.3g} times as "
        f"large in {comparison.first} as in {comparison.second}{_factors(layer.ratio)} "
        f"({MEANINGS[comparison.at]}); {sure}."
    )


def accuracy_rows(report: Report) -> list[dict[str, Any]]:
    """One row per network and seed, after the last epoch."""
    return [
        {
            "network": one.arch,
            "seed": one.seed,
            "epochs": len(one.history),
            "train": one.evaluation["last"]["train"]["accuracy"],
            "test": one.evaluation["last"]["test"]["accuracy"],
            "interval": one.evaluation["last"]["test"]["accuracy_interval"],
            "balanced": one.evaluation["last"]["test"]["balanced_accuracy"],
            "n_test": one.evaluation["last"]["test"]["n"],
            "test_loss": one.evaluation["last"]["test"]["loss"],
        }
        for name in report.names
        for one in report.of(name)
    ]


def class_rows(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Network -> one row per class: the mean over seeds, beside the published numbers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in report.names:
        parts = evaluated(report, name)
        theirs = published(name, report.class_names)
        for label in report.class_names if parts else ():
            rows = [part["report"][label] for part in parts]
            found.setdefault(name, []).append(
                {
                    "label": label,
                    "numbers": [
                        sum(row[key] for row in rows) / len(rows)
                        for key in ("precision", "recall", "f1-score")
                    ],
                    "support": int(rows[0]["support"]),
                    "published": theirs["report"][label] if theirs else None,
                }
            )
    return found


def mistakes(report: Report) -> list[dict[str, Any]]:
    """The surest wrong answers of each network's first seed, with small pictures where they are."""
    found = []
    read = _reader(report)
    for name in report.names:
        parts = evaluated(report, name)
        for one in (worst_mistakes(parts[0], N_MISTAKES) if parts else None) or ():
            photo = read(one.position)
            found.append(
                {
                    "network": name,
                    "label": report.class_names[one.label],
                    "predicted": report.class_names[one.predicted],
                    "probability": one.probability,
                    "picture": photo,
                }
            )
    return found


def _reader(report: Report) -> Any:
    """Position in the test set -> a small JPEG as a data URI; None where the images are gone."""
    from gradflow.data import open_source

    try:
        source = open_source(report.config["data"])
        positions = report.data["split"]["indices"]["test"]
    except (KeyError, OSError, ValueError, RuntimeError):
        return lambda position: None

    def read(position: int) -> str | None:
        try:
            photo = source.read(positions[position])
        except (OSError, ValueError):
            return None
        photo.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=80)
        return _uri(file.getvalue(), "jpeg")

    return read


def _body(chart: Chart, static: bool) -> Markup:
    if chart.interact is not None and not static:
        return Markup(chart.interact())  # noqa: S704 plotly escapes for <script>
    picture = _uri(plots.to_svg(chart.draw()), "svg+xml")
    return Markup('<img src="{}" alt="{}">').format(picture, chart.title)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _status(finding: Finding) -> str:
    is_rival = finding.key.startswith("H")
    return RIVAL_STATUS[finding.status] if is_rival else finding.status


def _factors(ratio: Interval) -> str:
    return "" if ratio.n < 2 else f" (95 % {10**ratio.low:.2g} to {10**ratio.high:.2g})"


def _markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| network | seed | epochs | train | test (95 %) | balanced | test loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        balanced = "" if row["balanced"] is None else f"{row['balanced']:.3f}"
        lines.append(
            f"| {row['network']} | {row['seed']} | {row['epochs']} | {row['train']:.3f} "
            f"| {row['test']:.3f} ({low:.3f} to {high:.3f}) | {balanced} | {row['test_loss']:.3f} |"
        )
    return "\n".join(lines)


def write(
    report: Report, found: Sequence[Chart], path: Path, *, static: bool = False
) -> list[Path]:
    """Write the page to `path`, and Markdown, JSON and every figure beside it."""
    folder = path.with_name(f"{path.stem}-figures")
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = {
        path: html(report, found, static=static),
        path.with_suffix(".md"): markdown(report, found, folder.name),
        path.with_suffix(".json"): json.dumps(to_json(report), indent=1, ensure_ascii=False) + "\n",
    }
    for file, text in pages.items():
        file.write_text(text, encoding="utf-8")
    save_charts(found, folder)
    return [*pages, folder]
