"""Numbers in prose are those of the stored results: each phrase is read against its JSON."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
WORKED = "docs/worked-example.md"
DIGITS = "docs/digits.md"
OVERVIEW = "experiments/README.md"


@cache
def prose(page: str) -> str:
    """A page as one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@cache
def stored(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


CELLS = RESULTS / "studies" / "photographs-64px" / "cells"
# Of what is kept training by training, the seeds in which both networks have ended.
PAIRS = sorted(
    (path.parents[1].name, path.parent.name.removeprefix("accused-"))
    for path in CELLS.glob("*/accused-s*/summary.json")
    if (path.parents[1] / path.parent.name.replace("accused", "reference")).exists()
)


def kept(arm: str, seed: str, place: str) -> Any:
    """What one training of the photographs' study came to."""
    (path,) = (CELLS / arm / f"{place}-{seed}").glob("*/evaluation.json")
    return json.loads(path.read_text(encoding="utf-8"))["last"]


def share_of(study: str, arm: str) -> Any:
    (one,) = (one for one in stored(f"studies/{study}")["arms"] if one["name"] == arm)
    return one["shares"]["train_loss"]


def share(study: str, arm: str) -> str:
    found = share_of(study, arm)
    low, high = found["interval"]
    return f"{found['mean']:.2f} | {low:.2f} to {high:.2f}".replace("-", "−")


def arm_again(study: str, arm: str) -> str:
    return str(stored("judged-again")["studies"][study][arm]["status"])


@pytest.mark.parametrize("arm", ["bias-1", "cosine", "skip-0.25", "tuned-lr"])
def test_the_shares_of_the_front_page_are_those_of_the_digits(arm: str) -> None:
    (line,) = (one for one in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
               if one.startswith(f"{arm} "))  # fmt: skip
    assert share_of("digits-30-epochs", arm)["status"] in line
    for number in share("digits-30-epochs", arm).split(" | "):
        assert number in line


@pytest.mark.parametrize(("arm", "seed"), PAIRS)
def test_each_pair_that_is_kept_stands_in_its_table(arm: str, seed: str) -> None:
    pair = [kept(arm, seed, place) for place in ("accused", "reference")]
    numbers = [one["train"]["recalibrated"]["loss"] for one in pair]
    numbers += [one["test"]["balanced_accuracy"] for one in pair]
    row = " | ".join([arm, seed[1:], *(f"{one:.3f}" for one in numbers)])
    assert f"| {row} |" in (ROOT / OVERVIEW).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("row", "measured"),
    [
        ("gradflow", "gradflow"),
        ('`wandb.watch(log="all")`', 'wandb.watch(log="all")'),
        ("Lightning `grad_norm`", "Lightning grad_norm"),
        ("TorchInstruments 0.10.2", "TorchInstruments, AlwaysSampler"),
        ("Cockpit 1.0.2", "Cockpit, GradNorm and UpdateSize"),
    ],
)
def test_the_times_beside_other_tools_are_those_that_were_measured(row: str, measured: str) -> None:
    table = (RESULTS / "overhead" / "overhead.md").read_text(encoding="utf-8")
    (line,) = (one for one in table.splitlines() if one.startswith(f"| {measured} |"))
    ratio = line.split(" | ")[3].split(" ")[0]
    page = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (shown,) = (one for one in page if one.startswith(f"| {row} |"))
    assert shown.endswith(f"| {ratio} times |")
