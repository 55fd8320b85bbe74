"""The gate: right on this machine, shut for a broken instrument, cached and never by mistake."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import gradflow.controls.gate as gates
from gradflow.analysis.rates import Rate
from gradflow.analysis.verdict import Verdict
from gradflow.controls import CONTROLS, CaseResult, ControlResult, Gate, load_gate
from gradflow.controls.gate import gate
from gradflow.controls.networks import CASES
from gradflow.present.terminal import controls_view


@pytest.fixture(scope="module")
def made() -> Gate:
    return gate()


def test_every_network_of_known_truth_gets_its_label(made: Gate) -> None:
    assert [case.n for case in made.cases] == [20] * len(CASES)
    assert [case.n_right for case in made.cases] == [20] * len(CASES)
    assert all(case.verdict_is_right for case in made.cases)
    assert (made.hit_rate, made.false_alarm_rate, made.passed) == (1.0, 0.0, True)
    assert made.seconds < 60, "a few seconds, on a machine that does nothing else"


# -- a broken instrument -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decades", "hit_rate", "false_alarm_rate"),
    [(lambda true: -true, 0.0, 0.0), (lambda _: float("nan"), 0.0, 1.0), (lambda _: -20, 0.5, 1.0)],
    ids=["from the wrong end", "sees nothing", "always cries"],
)
def test_a_broken_instrument_shuts_the_gate(
    decades: Callable[[float], float],
    hit_rate: float,
    false_alarm_rate: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its change over the depth is not what it measured."""
    true = Rate.decades.fget
    assert true is not None
    monkeypatch.setattr(Rate, "decades", property(lambda self: decades(true(self))))
    broken = gate(1)
    assert (broken.hit_rate, broken.false_alarm_rate) == (hit_rate, false_alarm_rate)
    assert not broken.passed


@pytest.mark.parametrize(("says", "right"), [(False, {"healthy"}), (True, set())])
def test_a_verdict_that_names_another_direction_shuts_the_gate(
    says: bool, right: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Verdict, "has", lambda self, direction: says)
    broken = gate(1)
    assert {case.label for case in broken.cases if case.verdict_is_right} == right
    assert not broken.passed


# -- counting ------------------------------------------------------------------------------------

GOOD = Gate(
    (
        CaseResult("v", "vanishing", 20, 20),
        CaseResult("e", "exploding", 19, 20),
        CaseResult("h", "healthy", 19, 20),
    ),
    1.0,
)


def with_counts(*counts: int) -> Gate:
    cases = zip(GOOD.cases, counts, strict=True)
    return Gate(tuple(replace(case, n_right=n) for case, n in cases), 1.0)


def test_rates_and_their_intervals() -> None:
    assert GOOD.passed
    assert (GOOD.hit_rate, GOOD.false_alarm_rate) == (39 / 40, 1 / 20)
    # Wilson 1927: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.
    assert GOOD.hit_rate_interval == pytest.approx((0.8712, 0.9956), abs=1e-4)
    assert GOOD.false_alarm_interval == pytest.approx((0.0089, 0.2361), abs=1e-4)


@pytest.mark.parametrize("counts", [(18, 20, 20), (20, 18, 20), (20, 20, 18)])
def test_one_case_of_eighteen_in_twenty_shuts_the_gate(counts: tuple[int, int, int]) -> None:
    """Though the rate over both kinds of hit is 38 of 40."""
    assert not with_counts(*counts).passed


def test_one_wrong_verdict_shuts_the_gate() -> None:
    """Though every network has its label."""
    first, *others = with_counts(20, 20, 20).cases
    wrong = Gate((replace(first, verdict_is_right=False), *others), 1.0)
    assert (wrong.hit_rate, wrong.false_alarm_rate, wrong.passed) == (1.0, 0.0, False)


def test_json_there_and_back(made: Gate) -> None:
    for one in (made, GOOD, with_counts(0, 3, 0)):
        content = json.loads(json.dumps(one.to_json(), allow_nan=False))
        assert Gate.from_json(content) == one
        assert content["passed"] == one.passed


def test_a_gate_needs_networks_of_both_kinds() -> None:
    with pytest.raises(ValueError, match="Expected cases that are healthy and cases that are not"):
        Gate(GOOD.cases[:2], 1.0)
    with pytest.raises(ValueError, match="Expected a count of right labels among at least one"):
        CaseResult("none", "healthy", 0, 0)


def test_what_a_person_sees() -> None:
    console = Console(width=150, file=io.StringIO())
    control = CONTROLS["C1 linear, orthogonal, gain 0.5"]
    results = [
        ControlResult(control, 0.25, 1e-12, 3, 3, 1.0),
        ControlResult(replace(control, rtol=0.05), 0.3, 0.01, 3, 3, 1.0),
    ]
    with console.capture() as capture:
        console.print(controls_view(results, with_counts(18, 20, 20)))
    shown = capture.get()
    for line in (
        "0.25 │ 0.25 ± 1e-12 │ 1e-09 of it │ 3 of 3 vanishing │ passed",
        "0.25 │   0.3 ± 0.01 │ 5%          │ 3 of 3 vanishing │ FAILED",
        "1 of 2 controls passed",
        "v: 18 of 20 vanishing",
        "hit rate          95.0% (95 % interval 83.5% to 98.6%)",
        "false alarm rate  0.0% (95 % interval 0.0% to 16.1%)",
        "gate              FAILED",
    ):
        assert line in shown


# -- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache, and how often the gate was made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[int] = []

    def make() -> Gate:
        made.append(1)
        return GOOD

    monkeypatch.setattr(gates, "gate", make)
    return made


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "gradflow").iterdir())


def test_the_gate_is_made_once(tmp_path: Path, calls: list[int]) -> None:
    assert load_gate() == GOOD
    assert load_gate() == GOOD
    assert len(calls) == 1
    (path,) = cached(tmp_path)
    assert path.name.startswith("gate-")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"cases": [{"name": 1}]}', '{"cases": [], "seconds": 1}', "\0"]
)
def test_a_broken_file_is_made_anew(tmp_path: Path, calls: list[int], text: str) -> None:
    load_gate()
    (path,) = cached(tmp_path)
    path.write_text(text, encoding="utf-8")
    assert load_gate() == GOOD
    assert len(calls) == 2
    assert load_gate() == GOOD
    assert len(calls) == 2


def test_other_versions_have_a_gate_of_their_own(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_gate()
    monkeypatch.setattr(gates, "version", lambda name: "0.0")
    load_gate()
    monkeypatch.setattr(gates, "VERSION", "0.0")
    load_gate()
    assert (len(calls), len(cached(tmp_path))) == (3, 3)


def test_other_source_has_a_gate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the package's source, before and after one byte changed."""
    package = tmp_path / "gradflow"
    for folder in gates.JUDGED:
        (package / folder).mkdir(parents=True)
        (package / folder / "one.py").write_text("x = 1\n")
    monkeypatch.setattr(gates, "PACKAGE", package)
    before = gates._fingerprint()
    assert before == gates._fingerprint()
    (package / "analysis" / "one.py").write_text("x = 2\n")
    assert gates._fingerprint() != before


def test_without_a_cache_it_is_made_every_time(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # no folder can be made in a file
    assert load_gate() == load_gate() == GOOD
    assert len(calls) == 2

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert load_gate() == GOOD
    assert len(calls) == 3
