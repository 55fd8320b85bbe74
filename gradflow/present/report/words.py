"""What a report says in sentences, the same in every form: page, Markdown, JSON, terminal."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.analysis.compare import MEANINGS, Comparison
from gradflow.analysis.findings import OUTCOMES
from gradflow.analysis.numerals import factor, p_text
from gradflow.analysis.statistics import Interval
from gradflow.analysis.thresholds import MIN_SEEDS
from gradflow.present.report.content import Report, Trained
from gradflow.present.verdict_story import counted
from gradflow.present.verdict_story import question as question_of_verdict
from gradflow.present.visible import one_line
from gradflow.training.original import published


def question(report: Report) -> str:
    """What the report answers."""
    if report.verdict is not None:
        return question_of_verdict(report.verdict)
    return f"How well did {' and '.join(report.names)} learn? ({counted(report.seeds)})"


def outcome(report: Report) -> tuple[str, str]:
    """The answer in a word or two, and what it means."""
    if report.verdict is not None:
        return report.verdict.outcome, OUTCOMES[report.verdict.outcome]
    return "not asked", "no gradients were recorded, so that no verdict is possible"


def sentences(report: Report) -> tuple[str, ...]:
    """The answer in three sentences; without records how well each network does."""
    if report.verdict is not None:
        return report.verdict.sentences
    return tuple(_accuracy(name, report.of(name)) for name in report.names)


def setting(report: Report) -> str:
    """What was trained on what; empty for a loop of the user's own."""
    if not report.trained:
        return ""
    n_epochs = sorted({len(one.history) for one in report.trained})
    epochs = f"{n_epochs[0]}" if len(n_epochs) == 1 else f"{n_epochs[0]} to {n_epochs[-1]}"
    counts = report.data["split"]["counts"]
    return (
        f"{' and '.join(report.trained_names)}, trained for {epochs} "
        f"epoch{'s' * (epochs != '1')} on "
        f"{report.data['audit']['name']}: {len(report.class_names)} classes, {counts['train']} "
        f"training and {counts['test']} test images, seed{'s' * (len(report.seeds) > 1)} "
        f"{', '.join(map(str, report.seeds))}.{_own_split(report)}"
    )


def missing_lines(report: Report) -> list[str]:
    """What the page does not have, and why."""
    own = (
        "The seeds have test images of their own: there are no differences in recall with "
        "intervals over seeds."
    )
    is_paired = report.has_one_split or len(report.trained_names) < 2
    return [*report.missing, *([] if is_paired else [own])]


def _own_split(report: Report) -> str:
    if report.has_one_split:
        return ""
    seed = report.trained[0].seed
    return f" Every seed has a split of its own; the counts are those of seed {seed}."


def differs(report: Report) -> str:
    """Which layer differs most, by how much, and whether that is more than chance."""
    found = report.largest_difference
    if found is None:
        return ""
    comparison, layer = found
    number = comparison.layers.index(layer) + 1
    staged = place_in_stage(layer.layer)
    where = f"{staged}, " if staged else ""
    ratio, larger, smaller = layer.ratio, comparison.first, comparison.second
    if ratio.mean < 0:  # said as a factor above 1
        ratio = replace(ratio, mean=-ratio.mean, low=-ratio.high, high=-ratio.low)
        larger, smaller = smaller, larger
    return (
        f"The two networks differ most at the layer {layer.layer}, {where}number {number} of "
        f"{len(comparison.layers)} from the input: there δ, the gradient passed on, is "
        f"{factor(ratio.mean)} times as large in {larger} as in {smaller}{_factors(ratio)}, "
        f"{MEANINGS[comparison.at]}. {_is_chance(comparison)}"
    )


def place_in_stage(layer: str) -> str:
    """What the name of a layer says in gradflow's and torchvision's residual networks, else empty.

    >>> place_in_stage("layer2.0.conv1"), place_in_stage("conv1")
    ('stage 2, block 0, convolution 1', '')
    """
    found = re.fullmatch(r"layer(\d+)\.(\d+)\.\w*?(\d+)", layer)
    return "stage {}, block {}, convolution {}".format(*found.groups()) if found else ""


def _is_chance(comparison: Comparison) -> str:
    n, of = sum(one.differs for one in comparison.layers), len(comparison.layers)
    if len(comparison.seeds) < MIN_SEEDS.value:
        return f"With fewer than {MIN_SEEDS.value:g} seeds this may be chance."
    if not n:
        return f"No layer surely differs (corrected for all {of} layers): more seeds would tell."
    return f"{n} of {of} layers differ beyond chance, this one among them (corrected for all {of})."


def commands(report: Report) -> list[str]:
    """What to type to train the same again, one line per run; none for a loop of one's own."""
    return [line for _, lines in again(report) for line in lines]


def again(report: Report) -> list[tuple[str, list[str]]]:
    """(what it was trained with, the commands), once for all runs of the same versions."""
    found: dict[str, list[str]] = {}
    for one in report.environments:
        commit = f" at {one['commit'][:12]}" if one.get("commit") else ""
        packages = ", ".join(f"{name} {version}" for name, version in one["packages"].items())
        versions = (
            f"gradflow {one['gradflow']}{commit}, Python {one['python']}, {packages}, "
            f"{one['device']}."
        )
        command = one.get("command")
        lines = found.setdefault(versions, [])
        if command and (line := _typed(command)) not in lines:
            lines.append(line)  # all trainings of a study have one command
    return list(found.items())


def _typed(command: Sequence[str]) -> str:
    """What one types for these arguments of a process; gradflow's own program without its path."""
    program = PurePath(command[0])
    is_ours = program.stem == "gradflow" or program.parts[-2:] == ("gradflow", "__main__.py")
    typed = map(one_line, command[1:])
    return shlex.join([*(["gradflow"] if is_ours else ["python", one_line(command[0])]), *typed])


def mcnemar_lines(report: Report) -> list[str]:
    """The exact test between the two networks, seed by seed."""
    return [
        f"Seed {one['seed']}: on {one['only_first_right']} test images only {report.names[0]} is "
        f"right, on {one['only_second_right']} only {report.names[1]} (exact McNemar test, "
        f"{p_text(one['p_value'])})."
        for one in report.mcnemar()
    ]


def published_lines(report: Report) -> list[str]:
    """What the original study published of each network; none for other classes."""
    return [
        f"{name} as published: accuracy {found['train_accuracy']:.3f} in training, "
        f"{found['test_accuracy']:.3f} on {found['n_test']} test images of a random split."
        for name in report.trained_names
        if (found := published(name, report.class_names))
    ]


def data_lines(report: Report) -> list[str]:
    """The audit, and the split with what of the test images stands in the training set."""
    if not report.data:
        return []
    audit, split = report.data["audit"], report.data["split"]
    counts, n = split["counts"], split["counts"]["near_contaminated"]
    is_near = audit["near_bits"] is not None  # else near twins were not looked for
    copy = "a copy, or a near one," if is_near else "an exact copy"
    copies = (
        f"{n} of {counts['test']} test images have {copy} in the training set: "
        "their accuracy measures memory."
        if n
        else f"No test image has {copy} in the training set."
    )
    same = " Validation and test set are the same images." * bool(split["validation_is_test"])
    return [
        f"{audit['name']}: {audit['n_images']} images, of which {_twins(audit, is_near)} "
        f"{len(audit['near_conflicts'])} groups of twins have different labels; "
        f"{len(audit['bad'])} images cannot be read.",
        f"Split {split['kind']}: {counts['train']} train, {counts['validation']} validation, "
        f"{counts['test']} test, {counts['set_aside']} copies set aside.{same} {copies}"
        f"{_own_split(report)}",
    ]


def _twins(audit: Mapping[str, Any], is_near: bool) -> str:
    distinct, exact = f"{audit['n_distinct']} are distinct", len(audit["exact_twins"])
    if not is_near:
        return f"{distinct}: {exact} groups of exact twins. Near twins were not looked for."
    return (
        f"{distinct} and {audit['n_near_distinct']} look distinct: {exact} groups of exact twins "
        f"and {len(audit['near_twins'])} of near ones."
    )


def _accuracy(name: str, trained: Sequence[Trained]) -> str:
    values = np.array([one.evaluation["last"]["test"]["accuracy"] for one in trained])
    over = f" ({values.min():.1%} to {values.max():.1%} over seeds)" if len(values) > 1 else ""
    return f"{name} is right on {values.mean():.1%} of the test images{over}."


def _factors(ratio: Interval) -> str:
    return "" if ratio.n < 2 else f" ({at.LEVEL} {factor(ratio.low, 2)} to {factor(ratio.high, 2)})"
