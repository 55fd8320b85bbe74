"""Claim: the verdict, end to end, is wrong in at most 5 of 100 studies, near and far from limits.

Studies of five paired seeds whose truth is planted: depth profiles, losses and shares of a gap are
drawn around planted means with the spread between seeds that trainings have, near each threshold
and far from it, and judged as any study is. What stays open is counted by itself: it is no error,
and says how much five seeds can do.

    python experiments/verdict_controls.py

Results: experiments/results/verdict-controls.json; the table stands in docs/controls.md.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradflow.analysis.case import Case
from gradflow.analysis.findings import Changes, Outcome
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.thresholds import MIN_SEEDS
from gradflow.analysis.verdict import Restored, judge_case
from gradflow.files import write_json
from gradflow.record import Trace

RESULTS = Path(__file__).parent / "results" / "verdict-controls.json"
N_STUDIES = 500
N_LAYERS = 12
N_SEEDS = int(MIN_SEEDS.value)
# Standard deviations over seeds, as the trainings of the worked example and the digits have them.
SPREAD = {"decades": 0.12, "loss": 0.03, "accuracy": 0.02, "share": 0.06}


@dataclass(frozen=True)
class Planted:
    """The true means of a simulated study, and the outcome that follows from them."""

    name: str
    truth: Outcome
    decades: float = -3.0  # from the last to the first layer of the accused; of the reference 0
    gap: float = 0.5  # nats; in accuracy half as much
    share: float | None = None  # of the gap that restoring the gradients takes away
    changes: Changes = "gradients"
    less: tuple[Outcome, ...] = ("undetermined",)  # what says less, and nothing false


VANISHES: tuple[Outcome, ...] = ("undetermined", "present, cause not tested")
PLANTED: tuple[Planted, ...] = (
    Planted("vanishes, restored: 0.8 of the gap", "supported", share=0.8),
    Planted("vanishes, restored: 0.35 of the gap", "supported", share=0.35),
    Planted("vanishes, signal and gradient restored: 0.8", "supported for signal and gradient",
            share=0.8, changes="signal and gradients"),
    Planted("vanishes a thousand-fold, not restored", "present, cause not tested"),
    Planted("vanishes 25-fold, not restored", "present, cause not tested", decades=-1.4),
    Planted("vanishes, restored: nothing of the gap", "present, not causal", share=0.0),
    Planted("vanishes, restored: 0.05 of the gap", "present, not causal", share=0.05),
    Planted("vanishes, restored: 0.15, between the limits", "undetermined", share=0.15),
    Planted("the same size at both ends", "refuted", decades=0.0),
    Planted("shrinks 6-fold", "refuted", decades=-0.8),
    Planted("grows a hundred-fold", "refuted", decades=2.0),
    Planted("shrinks ten-fold, the limit itself", "undetermined", decades=-1.0),
    Planted("no gap", "nothing to explain", gap=0.0, less=VANISHES),
    Planted("better by 0.2 nats", "nothing to explain", gap=-0.2, less=VANISHES),
    Planted("a gap of 0.1 nats, twice the margin", "present, cause not tested", gap=0.1),
)  # fmt: skip


@dataclass(frozen=True)
class Tally:
    """What the verdict said of many simulated studies of one kind."""

    planted: Planted
    said: dict[str, int]

    @property
    def n(self) -> int:
        return sum(self.said.values())

    @property
    def n_right(self) -> int:
        return self.said.get(self.planted.truth, 0)

    @property
    def n_open(self) -> int:
        """What says less than the truth, and nothing false."""
        less = set(self.planted.less) - {self.planted.truth}
        return sum(self.said.get(outcome, 0) for outcome in less)

    @property
    def n_wrong(self) -> int:
        return self.n - self.n_right - self.n_open

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "n": self.n, "right": self.n_right, "open": self.n_open, "wrong": self.n_wrong,
        }  # fmt: skip


def simulate(planted: Planted, n_studies: int, seed: int = 0) -> Tally:
    """Judge so many studies, each of five paired seeds."""
    random = np.random.default_rng(seed)
    said: dict[str, int] = {}
    for _ in range(n_studies):
        outcome = _study(planted, random)
        said[outcome] = said.get(outcome, 0) + 1
    return Tally(planted, dict(sorted(said.items())))


def _study(planted: Planted, random: np.random.Generator) -> Outcome:
    mine = [_network("accused", i, planted.decades, planted.gap, random) for i in range(N_SEEDS)]
    theirs = [_network("reference", i, 0.0, 0.0, random) for i in range(N_SEEDS)]
    restored = None
    if planted.share is not None:
        shares = random.normal(planted.share, SPREAD["share"], N_SEEDS)
        restored = Restored(tuple(shares.tolist()), planted.changes)
    return judge_case(Case.of(mine, theirs), None, restored).outcome


def _network(
    name: str, seed: int, decades: float, worse: float, random: np.random.Generator
) -> TrainedNetwork:
    """A stack of linear layers with a geometric profile; early layers move as they receive."""
    total = decades + random.normal(0, SPREAD["decades"])
    profile = np.append(10 ** np.linspace(total, 0, N_LAYERS - 1), 1.0)
    layers = [f"{i}" for i in range(N_LAYERS)]
    sites = [site for layer in layers for site in (layer, f"{layer}.weight")]
    table = np.full((1, 2 * N_LAYERS), np.nan)
    outputs, weights = table.copy(), table.copy()
    outputs[0, ::2], weights[0, 1::2] = profile, profile
    ones = np.where(np.isnan(weights), np.nan, 1.0)
    values = {"output_grad_norm": outputs, "grad_norm": weights, "weight_norm": ones,
              "update_norm": weights}  # fmt: skip
    trace = Trace(
        np.arange(1), tuple(sites), ("linear", "linear.weight") * N_LAYERS,
        np.full(2 * N_LAYERS, 4, dtype=np.int64), values,
    )  # fmt: skip
    return TrainedNetwork(
        name, seed, trace,
        train_loss=float(1 + worse + random.normal(0, SPREAD["loss"])),
        test_accuracy=float(0.6 - worse / 2 + random.normal(0, SPREAD["accuracy"])),
    )  # fmt: skip


def main() -> None:
    tallies = [simulate(one, N_STUDIES, seed) for seed, one in enumerate(PLANTED)]
    content = {"n_seeds": N_SEEDS, "spread": SPREAD, "studies": [one.to_json() for one in tallies]}
    write_json(RESULTS, content)
    print("| planted | truth | right, % | open, % | wrong, % |\n|---|---|---|---|---|")
    for one in tallies:
        counts = (one.n_right, one.n_open, one.n_wrong)
        shares = " | ".join(f"{100 * count / one.n:.1f}" for count in counts)
        print(f"| {one.planted.name} | {one.planted.truth} | {shares} |")


if __name__ == "__main__":
    main()
