"""Networks that deserve each outcome of a verdict, and the verdicts over them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from traces import make_case, reset

from gradflow.analysis.findings import Outcome
from gradflow.analysis.verdict import Restored, Verdict, judge_case

NAN = float("nan")

WORSE = {"loss": 0.9, "accuracy": 0.6}  # than 0.5 and 0.8 of the reference
CLOSES = (0.80, 0.82, 0.78, 0.81, 0.79)
DOES_NOT = (0.00, 0.02, -0.02, 0.01, -0.01)
FAILED = {"loss": float("inf"), "accuracy": NAN}
GROWS = {"delta": 2, **WORSE}


def vanishing(cost: float = 0.0, **others: Any) -> dict[str, Any]:
    """Gradients shrink a hundred-fold, early layers do not move, and losing them costs `cost`."""
    return {
        "delta": -2,
        "first_moves": 0.1,
        "examined": lambda seed: reset(cost, seed),
        **WORSE,
        **others,
    }


@dataclass(frozen=True)
class Checked:
    """A gate, as `gradflow.controls.gate` makes one."""

    passed: bool
    hit_rate: float = 1.0
    false_alarm_rate: float = 0.0

    def to_json(self) -> dict[str, Any]:
        rates = {"hit_rate": self.hit_rate, "false_alarm_rate": self.false_alarm_rate}
        return {**rates, "passed": self.passed}


BOTH = Restored(CLOSES, "signal and gradients")

# Outcome -> the accused, what an intervention found, whether the instrument passed.
REACHED: dict[Outcome, tuple[Mapping[str, Any], Restored, bool]] = {
    "supported": (vanishing(), Restored(CLOSES), True),
    "supported for signal and gradient": (vanishing(), BOTH, True),
    "present, cause not tested": (vanishing(), Restored(), True),
    "present, not causal": (vanishing(), Restored(DOES_NOT), True),
    "refuted": ({"delta": 0, **WORSE}, Restored(), True),
    "nothing to explain": ({"delta": -2}, Restored(), True),
    "undetermined": ({"delta": lambda seed: -1 + 3 * (-1) ** seed, **WORSE}, Restored(), True),
    "no verdict": (vanishing(), Restored(CLOSES), False),
}


def judged(
    accused: Mapping[str, Any],
    reference: Mapping[str, Any] | None = None,
    n_seeds: int = 5,
    *,
    restored: Restored | None = None,
) -> Verdict:
    return judge_case(make_case(accused, reference, n_seeds), restored=restored)


def reach(outcome: Outcome, n_seeds: int = 5) -> Verdict:
    accused, restored, passed = REACHED[outcome]
    restored = replace(restored, shares=restored.shares[:n_seeds])
    return judge_case(make_case(accused, {}, n_seeds), Checked(passed), restored)
