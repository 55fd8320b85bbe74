"""Rows of the tables in prose, number by number, are those of the stored results."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradflow.analysis.rivals import TRIED
from tests.test_prose import OVERVIEW, ROOT, prose, stored

STUDIES = {"vanishing-control": True, "photographs-64px-8-epochs": False, "digits-8-epochs": True}


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table of a page."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines
            if line.startswith("|")]  # fmt: skip


def text(number: float, sign: str = "") -> str:
    return f"{number:{sign}.2f}".replace("-", "−")


def spread(found: Any, digits: int = 2) -> str:
    """As the tables have it: mean (low to high), wide ends with less digits."""
    low, high = (f"{end:.1f}" if abs(end) > 10 else f"{end:.{digits}f}"
                 for end in found["interval"])  # fmt: skip
    return f"{found['mean']:.{digits}f} ({low} to {high})".replace("-", "−")


def arms() -> Iterator[Any]:
    for study in STUDIES:
        for arm in stored(f"studies/{study}")["arms"]:
            if arm.get("shares") and not arm["name"].startswith("early-"):
                yield pytest.param(study, arm, id=f"{study}, {arm['name']}")


def row_of(arm: Any) -> dict[str, str]:
    """The row of an arm by the names of its columns, told from other studies' by its share."""
    share = spread(arm["shares"]["train_loss"])
    headers: list[str] = []
    found = []
    for row in rows(OVERVIEW):
        headers = row if row[0] == "arm" else headers
        if re.split(r"[ :]", row[0])[0] == arm["name"].split()[0] and share in row:
            found.append(dict(zip(headers, row, strict=True)))
    (only,) = (one for one in found if re.split(r":| \(", one["arm"])[0] == arm["name"])
    return only


@pytest.mark.parametrize(("study", "arm"), [*arms()])
def test_the_row_of_an_arm(study: str, arm: Any) -> None:
    row = row_of(arm)
    if "of the accuracy gap" in row:
        assert row["of the accuracy gap"] == spread(arm["shares"]["test_accuracy"])
    again = stored("judged-again")["studies"].get(study)
    judged = arm["shares"]["train_loss"] if again is None else again[arm["name"]]
    assert row["it is"].strip("*") == judged["status"]
    if study != "vanishing-control":
        gains = [arm["shares"]["train_loss"][f"{place}_gain"] for place in ("accused", "reference")]
        expected = [text(one["mean"], "+") for one in gains]
        if "accused" not in arm["networks"]:
            expected[0] = "untouched"
        said = [row["accused gains"], row["reference gains"]]
        assert [one.replace("-0.00", "+0.00").replace("−0.00", "+0.00") for one in said] == [
            one.replace("−0.00", "+0.00") for one in expected
        ]
        assert row["check"] == ("passed" if arm["moved"] else "failed")
    if STUDIES[study]:
        seconds = stored(f"studies/{study}-times")[arm["name"]].values()
        assert row["one training"] == f"{np.mean([*seconds]):.0f} s"


def test_the_shares_of_what_did_not_matter() -> None:
    found = {}
    studies = (*STUDIES, "digits-30-epochs", "photographs-64px")
    for study in studies:
        arms = {arm["name"]: arm for arm in stored(f"studies/{study}")["arms"]}
        found |= {(study, name): arm["shares"].get("train_loss") for name, arm in arms.items()}
    table = [row for row in rows("docs/negative-results.md") if row[0] in studies]
    assert len(table) == 12
    for study, what, share, n_seeds in table:
        stored_share = found[study, what.partition(":")[0]]
        assert share == spread(stored_share)
        assert int(n_seeds) == stored_share["n_seeds"]


@pytest.mark.parametrize("study", STUDIES)
def test_the_gap_and_the_controls(study: str) -> None:
    page = prose(OVERVIEW)
    found = stored(f"studies/{study}")
    gap = found["gap"]["train_loss"]
    low, high = gap["interval"]
    assert f"{gap['mean']:.2f} nats ({low:.2f} to {high:.2f}" in page
    for control in found["controls"] if study != "vanishing-control" else ():
        low, high = control["change"]["interval"]
        said = f"{text(control['change']['mean'], '+')}{{}} ({text(low)} to {text(high)})"
        assert any(said.format(unit) in page or said.format(unit).replace(" (", ", ")[:-1] in page
                   for unit in ("", " nats")), said  # fmt: skip


@pytest.mark.parametrize("split", ["random", "grouped"])
@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("epoch", ["best", "last"])
def test_the_row_of_the_original_study(split: str, i: int, epoch: str) -> None:
    network = stored("original-study-64px")[split]["networks"][i]
    one, ratio = network[epoch], network["grad_norm_first_to_last"]
    low, high = one["test"]["accuracy_interval"]
    (row,) = (row for row in rows(OVERVIEW) if row[:2] == [split, network["arch"]]
              and row[2].startswith(epoch))  # fmt: skip
    assert f"({one['epoch'] + 1})" in row[2]
    assert ("chosen on the test set" in row[2]) == ((split, epoch) == ("random", "best"))
    assert row[3] == f"{one['train']['accuracy']:.3f}"
    assert row[4] == f"{one['test']['accuracy']:.3f} ({low:.3f} to {high:.3f})"
    published = network["published"]
    assert split == "grouped" or row[5] == (
        f"{published['train_accuracy']:.3f} / {published['test_accuracy']:.3f}"
    )
    measured = [ratio[when] for when in ("first_recorded_step", "over_training")]
    assert [*map(float, row[6:])] == [float(f"{one:.3g}") for one in measured]


def test_the_front_page_shows_what_the_zoo_says() -> None:
    page = prose("README.md")
    test, trained = stored("zoo")["test"], stored("zoo")["trained"]["BatchNorm"]
    assert test["hits"]["n"] == test["hits"]["of"]
    assert f"all {test['hits']['of']} that train with neither" in page
    assert f"{test['false alarms']['n']} of the {test['false alarms']['of']} that train" in page
    assert f"in the {trained[0]} networks of the zoo with BatchNorm" in page
    n = sum(sum(stored("zoo")[half][kind].values()) for half in ("set", "test")
            for kind in ("neither", "one optimizer", "both"))  # fmt: skip
    assert f"one half of {n} trained networks" in page


def test_the_table_of_the_zoo() -> None:
    test = stored("zoo")["test"]
    named = {row[0]: row[1:] for row in rows("docs/controls.md")}
    counts = [list(test[kind].values()) for kind in ("neither", "one optimizer", "both")]
    for kind, row in zip(("neither", "one optimizer", "both"), counts, strict=True):
        assert named[f"train with {kind} ({sum(row)})"] == [str(n) for n in row]
    assert f"test half, {sum(map(sum, counts))} networks" in named


@pytest.mark.parametrize("key", TRIED)
def test_the_table_of_the_rivals(key: str) -> None:
    """`TRIED` itself is read against rival-controls.json in tests/analysis/test_rivals.py."""
    (row,) = (row for row in rows("docs/verdict.md") if row[0].startswith(key))
    tried = TRIED[key]
    assert row[3:] == [tried.planted, f"{tried.hits} of {tried.n_planted}",
                       f"{tried.false_alarms} of {tried.n_others}"]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "row", "form"),
    [
        ("output_gradient_decades", "link 1: δ", "+.2f"),
        ("scale_invariant_decades", "link 1: ŝ", "+.2f"),
        ("output_gradient_to_reference", "link 2: δ", "+.2f"),
        ("scale_invariant_to_reference", "link 2: ŝ", "+.2f"),
        ("relative_update", "size of a step", ".5f"),
        ("distance travelled", "distance travelled", ".3f"),
        ("adam_attenuation", "Adam's attenuation", ".4f"),
    ],
)
def test_what_the_cadence_does_to_precision(key: str, row: str, form: str) -> None:
    text = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("| ") and row in line
               and "to" in line.split("|")[-2])  # fmt: skip
    cells = [
        "{:{form}} ({:{form}} to {:{form}})".format(*stored("cadence")["rows"][n][key], form=form)
        for n in ("1", "8")
    ]
    assert line.endswith(f"| {cells[0]} | {cells[1]} |")
