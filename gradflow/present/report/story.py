"""The sections of a report, in the order in which a reader asks."""

from collections.abc import Iterator, Sequence
from typing import Any

from gradflow.analysis import thresholds as at
from gradflow.present.report import words
from gradflow.present.report.charts_by_depth import (
    gradient_charts,
    histogram_charts,
    layer_charts,
)
from gradflow.present.report.charts_of_training import class_charts, training_charts
from gradflow.present.report.content import Report
from gradflow.present.report.numbers import (
    accuracy_rows,
    class_rows,
    mistakes,
    photos_of_test_set,
    seed_rows,
)
from gradflow.present.report.saliency import NO_MAPS
from gradflow.present.section import SECTIONS, Box, Chart, Code, Part, Section, TextTable, Tiles
from gradflow.present.study_figures import study_charts
from gradflow.present.study_story import study_section
from gradflow.present.verdict_story import changed, how_sure, why

SIGNATURE = "gradient-profiles"  # the figure that stands on the first screen
NUMBERS = ("train", "test", "balanced", "test loss (nats)")


def story(report: Report, charts: Sequence[Chart]) -> list[Section]:
    """All of it; a section without anything in it is left out."""
    by_section: dict[str, list[Part]] = {key: [] for key in SECTIONS}
    for chart in charts:
        if chart.key != SIGNATURE:
            by_section[chart.section].append(chart)
    study = by_section.pop("study")
    by_section["training"] += _accuracies(report)
    maps: Sequence[Part] = report.saliency or [NO_MAPS]
    tests = words.mcnemar_lines(report)
    by_section["classes"] = [*_classes(report), *by_section["classes"], *tests]
    sections = [
        answer(report, [chart for chart in charts if chart.key == SIGNATURE]),
        *([] if report.study is None else [study_section(report.study, study)]),
        *(Section(key, SECTIONS[key], parts) for key, parts in by_section.items()),
        Section("mistakes", "Worst mistakes", _mistakes(report)),
        Section("saliency", "Saliency", maps if report.class_names else []),
        *([] if report.verdict is None else [why(report.verdict)]),
        Section("data", "Data", words.data_lines(report)),
        Section("again", "Do it again", list(_again(report))),
    ]
    return [one for one in sections if one.parts]


def answer(report: Report, signature: Sequence[Chart] = ()) -> Section:
    """What stands on the first screen."""
    sure = how_sure(report.names, report.seeds, report.verdict)
    said = () if report.verdict else ("{}: {}.".format(*words.outcome(report)).capitalize(),)
    head, *lines = filter(None, (*said, *words.sentences(report), words.differs(report), sure))
    return Section(
        "answer",
        words.question(report),
        [
            *filter(None, [words.setting(report)]),
            *changed(report.changed),
            Box(head, lines),
            *signature,
            *words.missing_lines(report),
        ],
    )


def _accuracies(report: Report) -> list[Part]:
    """Over the seeds, and seed by seed."""
    over = [
        [row["network"], row["seeds"], row["train"], row["test"], row["balanced"], row["test_loss"]]
        for row in seed_rows(report)
    ]
    alone = []
    for row in accuracy_rows(report):
        low, high = row["interval"]
        test = f"{row['test']:.3f} ({low:.3f} to {high:.3f})"
        balanced = "" if row["balanced"] is None else f"{row['balanced']:.3f}"
        cells = [f"{row['seed']}", f"{row['epochs']}", f"{row['train']:.3f}", test, balanced]
        alone.append([row["network"], *cells, f"{row['test_loss']:.3f}"])
    title = "Accuracy after the last epoch"
    means = f"{title}, mean over seeds ({at.LEVEL} interval over them)"
    single = f"{title}, seed by seed ({at.LEVEL} interval over the test images)"
    return [
        *([TextTable(["network", "seeds", *NUMBERS], over, means)] if over else []),
        *([TextTable(["network", "seed", "epochs", *NUMBERS], alone, single)] if alone else []),
        *words.published_lines(report),
    ]


def _classes(report: Report) -> Iterator[Part]:
    for name, rows in class_rows(report).items():
        published = ", and in brackets as published" if rows[0]["published"] else ""
        yield TextTable(
            ["class", "precision", "recall", "F1", "images"],
            [[row["label"], *_cells(row), str(row["support"])] for row in rows],
            f"{name}, class by class: mean over seeds{published}",
        )


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [f"{number:.2f}" for number in row["numbers"]]
    if not row["published"]:
        return cells
    return [f"{cell} ({one:.2f})" for cell, one in zip(cells, row["published"], strict=True)]


def _mistakes(report: Report) -> list[Part]:
    photos, where = photos_of_test_set(report)
    found = mistakes(report, photos)
    if not found:
        return []
    lines = [
        f"{one['network']}: {one['label']} taken for {one['predicted']}, "
        f"{one['probability']:.0%} sure"
        for one in found
    ]
    about = f"The wrong answers that the first seed was most sure of. {where}"
    return [about, Tiles(lines, [one["picture"] for one in found])]


def _again(report: Report) -> Iterator[Part]:
    for versions, lines in words.again(report):
        yield from ([Code(lines, "bash")] if lines else [])
        yield versions
    yield f"Seeds {', '.join(map(str, report.seeds))}."
    if report.config:
        others = "; the others differ from it in networks, seeds and places alone"
        several = len(report.environments) > 1
        title = f"The whole config{f' of the first run{others}' if several else ''}"
        yield Code([f"{name}: {value}" for name, value in report.config.items()], "yaml", title)


def charts(report: Report) -> list[Chart]:
    """What the runs hold: a figure without data is left out."""
    return [
        *(() if report.study is None else study_charts(report.study)),
        *gradient_charts(report),
        *histogram_charts(report),
        *layer_charts(report),
        *training_charts(report),
        *class_charts(report),
    ]
