"""The report as Markdown, for a README or an issue."""

import html
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from gradflow.analysis import thresholds as at
from gradflow.analysis.findings import Finding
from gradflow.present.report.chart import SECTIONS, Chart
from gradflow.present.report.content import Report
from gradflow.present.report.rows import accuracy_rows, arm_rows, class_rows, mistakes, seed_rows
from gradflow.present.report.saliency import NO_MAPS
from gradflow.present.report.words import (
    again,
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
from gradflow.present.visible import one_line


def markdown(report: Report, found: Sequence[Chart], folder: str) -> str:
    """The same as the page; the figures stand in `folder` beside it."""
    word, meaning = outcome(report)
    lines = [
        f"# {plain(question(report))}",
        plain(setting(report)),
        f"**{plain(report.changed)}**" if report.changed else "",
        f"**{word}**: {meaning}.",
        *map(plain, (*sentences(report), differs(report), how_sure(report), *report.missing)),
    ]
    for section, heading in SECTIONS.items():
        body = [
            *_before(report, section),
            *_pictures([chart for chart in found if chart.section == section], folder),
            *_after(report, section),
        ]
        lines += [f"## {heading}", *body] if body else []
    lines += [
        *_mistakes(report),
        *_saliency(report, folder),
        *_verdict_lines(report),
        *_data(report),
        *_again(report),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag in it is one, no bracket makes a link, in one line.

    >>> plain("<script>x</script> [a](b)")
    '&lt;script&gt;x&lt;/script&gt; \\\\[a\\\\](b)'
    """
    return re.sub(r"([\\\[\]*])", r"\\\1", html.escape(one_line(text), quote=False))


def _fenced(language: str, lines: Sequence[str]) -> str:
    """A block of code that no line in it can close."""
    body = "\n".join(map(one_line, lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{fence}{language}\n{body}\n{fence}"


def _pictures(found: Sequence[Chart], folder: str) -> list[str]:
    lines = []
    for chart in found:
        title = plain(chart.title)
        picture = [] if chart.draw is None else [_image(title, folder, chart.key)]
        lines += [*picture, f"*{title}.* {plain(chart.caption)}"]
    return lines


def _image(title: str, folder: str, name: str) -> str:
    """A link may hold no space."""
    return f"![{title}]({quote(f'{folder}/{name}.png')})"


def _before(report: Report, section: str) -> list[str]:
    """What stands above the figures of a section."""
    if section == "study" and report.study is not None:
        gaps, rest = (map(plain, of(report.study)) for of in (gap_lines, remarks))
        checks = all_checks(report.study)
        measured = ["What each arm changed, measured:", _items(checks)] if checks else []
        return [*gaps, _arm_table(report), *rest, *measured]
    lines = []
    if section == "classes":
        for name, classes in class_rows(report).items():
            lines += [f"### {plain(name)}, class by class", _class_table(classes)]
    return lines


def _after(report: Report, section: str) -> list[str]:
    """What stands below them."""
    rows = accuracy_rows(report)
    if section == "training" and rows:
        means = seed_rows(report)
        lines = ["### Accuracy after the last epoch"]
        lines += [_seed_table(means)] if means else []
        return [*lines, _accuracy_table(rows), _items(published_lines(report))]
    lines = mcnemar_lines(report) if section == "classes" else []
    return [_items(lines)] if lines else []


def _mistakes(report: Report) -> list[str]:
    worst = [
        f"{one['network']}: {one['label']} taken for {one['predicted']}, "
        f"{one['probability']:.0%} sure"
        for one in mistakes(report)
    ]
    return ["## Worst mistakes", "Of the first seed.", _items(worst)] if worst else []


def _saliency(report: Report, folder: str) -> list[str]:
    if not report.class_names:
        return []
    lines = ["## Saliency"]
    for one in report.saliency:
        heading = plain(one.heading)
        lines += [f"### {heading}", _image(heading, folder, one.name), plain(one.caption)]
    return lines if report.saliency else [*lines, NO_MAPS]


def _data(report: Report) -> list[str]:
    lines = data_lines(report)
    return ["## Data", *map(plain, lines)] if lines else []


def _again(report: Report) -> list[str]:
    lines = ["## Do it again"] if report.environments else []
    for versions, typed in again(report):
        lines += [_fenced("bash", typed), plain(versions)]
    if report.config:
        config = [f"{name}: {value}" for name, value in report.config.items()]
        lines += ["The config of the first run:", _fenced("yaml", config)]
    return lines


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def _class_table(rows: Sequence[dict[str, Any]]) -> str:
    """The means over seeds, and in brackets as published."""
    lines = ["| class | precision | recall | F1 | images |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{number:.2f}" for number in row["numbers"]]
        if row["published"]:
            theirs = row["published"]
            cells = [f"{cell} ({one:.2f})" for cell, one in zip(cells, theirs, strict=True)]
        lines.append(f"| {_cell(row['label'])} | {' | '.join(cells)} | {row['support']} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """In one cell of a table: no bar ends it, and no new line."""
    return plain(" ".join(text.split())).replace("|", r"\|")


def _verdict_lines(report: Report) -> list[str]:
    verdict = report.verdict
    if verdict is None:
        return []
    return [
        "## Why, and the rivals",
        "\n".join(map(_finding, (*verdict.links, *verdict.rivals))),
        "### Next",
        "\n".join(f"{i}. {step}" for i, step in enumerate(verdict.next_steps, start=1)),
        *(f"Note: {plain(note)}" for note in verdict.notes),
    ]


def _finding(one: Finding) -> str:
    """Its answer, and below it what that rests on and what was not measured."""
    head = f"- {one.key}, {plain(one.title)}: {status(one)}. {plain(one.question)}"
    return "\n".join([head, *(f"  - {plain(line)}" for line in reasons(one))])


def _arm_table(report: Report) -> str:
    lines = [
        f"| arm | it is | share of the gap | {at.LEVEL} | of the accuracy gap | check |",
        "|---|---|---|---|---|---|",
    ]
    keys = ("arm", "status", "share", "interval", "accuracy_share", "check")
    lines += [f"| {' | '.join(_cell(row[key]) for key in keys)} |" for row in arm_rows(report)]
    return "\n".join(lines)


def _seed_table(rows: Sequence[dict[str, str]]) -> str:
    lines = [
        f"| network | seeds | train, mean ({at.LEVEL} over seeds) | test | balanced | test loss |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {_cell(row['network'])} | {row['seeds']} | {row['train']} | {row['test']} "
            f"| {row['balanced']} | {row['test_loss']} |"
        )
    return "\n".join(lines)


def _accuracy_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| network | seed | epochs | train | test ({at.LEVEL} over test images) | balanced "
        "| test loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        balanced = "" if row["balanced"] is None else f"{row['balanced']:.3f}"
        lines.append(
            f"| {_cell(row['network'])} | {row['seed']} | {row['epochs']} | {row['train']:.3f} "
            f"| {row['test']:.3f} ({low:.3f} to {high:.3f}) | {balanced} | {row['test_loss']:.3f} |"
        )
    return "\n".join(lines)
