"""The gate: does the instrument tell vanishing, healthy and exploding networks apart, today, here?

No verdict should be given on a machine where it does not.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.rates import Label, trace_rate
from gradflow.analysis.statistics import wilson
from gradflow.analysis.thresholds import FALSE_ALARM_RATE, HIT_RATE
from gradflow.analysis.vanishing import Direction
from gradflow.analysis.verdict import judge_case
from gradflow.files import write_json
from gradflow.typed import to_json
from gradflow.version import VERSION

if TYPE_CHECKING:
    from gradflow.controls.networks import KnownNetwork
    from gradflow.controls.truths import ControlResult, Progress
    from gradflow.record import Trace

N_SEEDS = 20

PACKAGE = Path(__file__).parents[1]
# What decides how a case is labelled: a change in any of it makes the gate anew.
JUDGED = ("record", "analysis", "controls")


@dataclass(frozen=True)
class CaseResult:
    """How often a case got its label."""

    name: str
    label: Label
    n_right: int
    n: int
    verdict_is_right: bool = True  # that of all its networks together, as seeds of one

    def __post_init__(self) -> None:
        if not 0 <= self.n_right <= self.n or self.n == 0:
            raise ValueError(
                f"Expected a count of right labels among at least one, but {self.name!r} has "
                f"{self.n_right} of {self.n}."
            )


@dataclass(frozen=True)
class Gate:
    """How often each case got its label, and whether that is often enough for a verdict."""

    cases: tuple[CaseResult, ...]
    seconds: float

    def __post_init__(self) -> None:
        is_healthy = {case.label == "healthy" for case in self.cases}
        if is_healthy != {True, False}:
            raise ValueError(
                "Expected cases that are healthy and cases that are not, but got "
                f"{[case.name for case in self.cases]}. A gate needs both."
            )

    @property
    def hit_rate(self) -> float:
        """The share of vanishing and exploding networks that are called so."""
        n_right, n = self._counts(healthy=False)
        return n_right / n

    @property
    def hit_rate_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the hit rate."""
        return wilson(*self._counts(healthy=False))

    @property
    def false_alarm_rate(self) -> float:
        """The share of healthy networks that are called anything else."""
        n_right, n = self._counts(healthy=True)
        return (n - n_right) / n

    @property
    def false_alarm_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the false alarm rate."""
        n_right, n = self._counts(healthy=True)
        return wilson(n - n_right, n)

    @property
    def passed(self) -> bool:
        """Whether every single case has its label often enough, and the right verdict.

        A mean over the cases could hide one.
        """
        return all(
            (case.n - case.n_right) / case.n <= FALSE_ALARM_RATE.value
            if case.label == "healthy"
            else case.n_right / case.n >= HIT_RATE.value
            for case in self.cases
        ) and all(case.verdict_is_right for case in self.cases)

    def _counts(self, *, healthy: bool) -> tuple[int, int]:
        """Right ones and all."""
        chosen = [case for case in self.cases if (case.label == "healthy") == healthy]
        return sum(case.n_right for case in chosen), sum(case.n for case in chosen)

    def to_json(self) -> dict[str, Any]:
        """Plain types: the counts, and what follows from them."""
        return {
            "cases": to_json(self.cases),
            "seconds": self.seconds,
            "hit_rate": self.hit_rate,
            "hit_rate_interval": list(self.hit_rate_interval),
            "false_alarm_rate": self.false_alarm_rate,
            "false_alarm_interval": list(self.false_alarm_interval),
            "passed": self.passed,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Gate":
        """From what `to_json` gave; only the counts are read.

        Raises KeyError, TypeError or ValueError where it is something else.
        """
        cases = tuple(CaseResult(**case) for case in content["cases"])
        return Gate(cases, float(content["seconds"]))


def gate(n_seeds: int = N_SEEDS) -> Gate:
    """Label every case on `n_seeds` networks, and judge these together. Takes a few seconds."""
    from gradflow.controls.networks import CASES, record

    start = time.perf_counter()
    cases = tuple(_result(case, [record(case, seed) for seed in range(n_seeds)]) for case in CASES)
    return Gate(cases, time.perf_counter() - start)


def _result(case: "KnownNetwork", traces: "Sequence[Trace]") -> CaseResult:
    n_right = sum(trace_rate(one, "output_gradient").label == case.label for one in traces)
    return CaseResult(case.name, case.label, n_right, len(traces), _is_judged_right(case, traces))


def _is_judged_right(case: "KnownNetwork", traces: "Sequence[Trace]") -> bool:
    """Whether the verdict, end to end, says of these networks what they are."""
    seeds = [TrainedNetwork(case.name, seed, trace) for seed, trace in enumerate(traces)]
    try:
        verdict = judge_case(Case.of(seeds))
    except ValueError:  # it sees no gradient
        return False
    outcome = "present, cause not tested" if case.label == "vanishing" else "refuted"
    if verdict.outcome not in (outcome, "undetermined"):  # C7 has no ŝ, which leaves it open
        return False
    found = [label for label in get_args(Direction) if verdict.has(label)]
    return found == ([] if case.label == "healthy" else [case.label])


def run_all(progress: "Progress | None" = None) -> "tuple[list[ControlResult], Gate]":
    """Every control with all its seeds, and the gate, made anew. Takes a minute or two."""
    from gradflow.controls.truths import run

    return run(progress=progress), gate()


# -- the cache ---------------------------------------------------------------------------------


def load_gate() -> Gate:
    """The gate of this code and this PyTorch, from the user's cache if it was made before.

    It lies in `$XDG_CACHE_HOME/gradflow`, else in `~/.cache/gradflow`. Where nothing can be written
    there, it is made every time.
    """
    path = _cache_path()
    if path is None:
        return gate()
    with suppress(OSError, ValueError, KeyError, TypeError):  # no such file, or none that is whole
        return Gate.from_json(json.loads(path.read_text(encoding="utf-8")))
    made = gate()
    with suppress(OSError):  # a cache that is full is no error
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, made.to_json())
    return made


def _cache_path() -> Path | None:
    """Under a name that tells the versions and the source; None where there is no home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "gradflow" / f"gate-{_fingerprint()}.json"


def _fingerprint() -> str:
    """Of gradflow's version, PyTorch's, and the source that decides how a case is labelled."""
    digest = hashlib.sha256(f"{VERSION}/{version('torch')}".encode())
    for folder in JUDGED:
        for path in sorted((PACKAGE / folder).glob("*.*")):
            if path.suffix in (".py", ".cpp"):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
