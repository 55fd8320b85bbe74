"""The report as Markdown, for a README or an issue."""

import html
import re
from collections.abc import Sequence
from typing import Any

from gradflow.present.report.chart import SECTIONS, Chart
from gradflow.present.report.content import Report
from gradflow.present.report.rows import accuracy_rows
from gradflow.present.report.words import (
    commands,
    differs,
    how_sure,
    outcome,
    question,
    sentences,
    setting,
    status,
)


def markdown(report: Report, found: Sequence[Chart], folder: str) -> str:
    """The same as the page; the figures stand in `folder` beside it."""
    word, meaning = outcome(report)
    lines = [
        f"# {plain(question(report))}",
        plain(setting(report)),
        f"**{word}**: {meaning}.",
        *map(plain, (*sentences(report), differs(report), how_sure(report), *report.missing)),
    ]
    for section, heading in SECTIONS.items():
        pictures = [chart for chart in found if chart.section == section]
        if pictures:
            lines.append(f"## {heading}")
        for chart in pictures:
            title, caption = plain(chart.title), plain(chart.caption)
            lines += [f"![{title}]({folder}/{chart.key}.png)", f"*{title}.* {caption}"]
    lines += _verdict_lines(report)
    if accuracy := accuracy_rows(report):
        lines += ["## Accuracy on test images", _table(accuracy)]
    if again := commands(report):
        lines += ["## Do it again", "\n".join(("```bash", *again, "```"))]
    return "\n\n".join(line for line in lines if line) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag in it is one, and no bracket makes a link.

    >>> plain("<script>x</script> [a](b)")
    '&lt;script&gt;x&lt;/script&gt; \\\\[a\\\\](b)'
    """
    return re.sub(r"([\\\[\]*])", r"\\\1", html.escape(text, quote=False))


def _verdict_lines(report: Report) -> list[str]:
    verdict = report.verdict
    if verdict is None:
        return []
    return [
        "## Why",
        "\n".join(
            f"- {one.key}, {plain(one.title)}: {status(one)}. {plain(one.question)}"
            for one in (*verdict.links, *verdict.rivals)
        ),
        "## Next",
        "\n".join(f"{i}. {step}" for i, step in enumerate(verdict.next_steps, start=1)),
    ]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| network | seed | epochs | train | test (95 %) | balanced | test loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        balanced = "" if row["balanced"] is None else f"{row['balanced']:.3f}"
        lines.append(
            f"| {plain(row['network'])} | {row['seed']} | {row['epochs']} | {row['train']:.3f} "
            f"| {row['test']:.3f} ({low:.3f} to {high:.3f}) | {balanced} | {row['test_loss']:.3f} |"
        )
    return "\n".join(lines)
