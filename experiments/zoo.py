"""Claim under test: what `gradflow check` says before training predicts whether a network trains.

The truth: every network of zoo_networks.py is trained on a task that any network of its kind can
learn, telling 4 noisy prototypes apart, with fresh examples at every step. It has learned when the
mean loss of ten steps is below half of chance. SGD with momentum and AdamW, each at two learning
rates, up to three seeds, at most 300 steps. With an optimizer a network *trains* when two seeds of
three learn at one of its rates. Of a recurrent loop the class shows at the first time step only.

    python experiments/zoo.py train              # the truth; goes on where it was stopped
    python experiments/zoo.py measure            # what gradflow.check finds at the start
    python experiments/zoo.py judge              # both together: ROC, hits, false alarms, figure

Recipe, threshold of learning and the two halves were committed before the runs that they judge. A
fixed hash of its name puts a network into the half that sets the limits of the labels, or into the
half that tests them.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from zoo_networks import N_CLASSES, Network, networks

import gradflow
from gradflow.examine.trainability import ALIKE, GROWN, LOUD, OUTLOOKS, SHRUNK
from gradflow.typed import to_json

RESULTS = Path(__file__).parent / "results"
TRUTH = RESULTS / "zoo-truth.json"
CHECKS = RESULTS / "zoo-check.json"
FIGURE = Path(__file__).parents[1] / "docs/images/zoo.svg"
DRAWS = 5

# -- the recipe --------------------------------------------------------------------------------

STEPS = 300
SEEDS = (0, 1, 2)
WINDOW = 10  # steps, whose mean loss is compared with
LEARNED = 0.5  # of chance, ln 4
BATCH = {"vector": 16, "image": 8, "sequence": 16, "first step": 16}
WARM_UP = 10  # steps
NOISE = 0.5
QUIET = 0.3  # of the time steps that hold nothing
MAJORITY = 2  # seeds
RECIPES: dict[str, tuple[Callable[..., Optimizer], tuple[float, ...], dict[str, float]]] = {
    "sgd": (SGD, (0.02, 0.002), {"momentum": 0.9}),
    "adamw": (AdamW, (1e-3, 1e-4), {}),
}

app = cyclopts.App(help=__doc__)


def half(name: str) -> str:
    """ "set" for the limits or "test", by a hash that nobody chose."""
    return "test" if hashlib.sha256(name.encode()).digest()[0] % 2 else "set"


class Task:
    """Noisy prototypes: those of images are 4×4 patches, so that a mean over places tells them."""

    def __init__(self, network: Network, seed: int) -> None:
        self._random = torch.Generator().manual_seed(1000 + seed)
        self._n, self._signal = BATCH[network.signal], network.signal
        shape = network.shape
        if self._signal == "image":
            coarse = torch.randn(N_CLASSES, 3, 4, 4, generator=self._random)
            self._prototypes = F.interpolate(coarse, shape[1:], mode="nearest")
        else:
            self._prototypes = torch.randn(N_CLASSES, *shape, generator=self._random)
        if self._signal == "first step":
            self._prototypes[:, 1:] = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        labels = torch.randint(N_CLASSES, (self._n,), generator=self._random)
        clean = self._prototypes[labels]
        noise = torch.randn(clean.shape, generator=self._random)
        return clean + (QUIET if self._signal == "first step" else NOISE) * noise, labels


def learn(network: Network, optimizer: str, rate: float, seed: int) -> int | None:
    """The step at which it has learned; None if it never does, or if the loss is not finite."""
    torch.manual_seed(seed)
    model, task = network.build().train(), Task(network, seed)
    kind, _, options = RECIPES[optimizer]
    updates = kind(model.parameters(), lr=rate, **options)
    losses: list[float] = []
    for step in range(STEPS):
        for group in updates.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARM_UP)
        inputs, labels = task.batch()
        updates.zero_grad()
        loss = F.cross_entropy(_logits(model(inputs)), labels)
        if not torch.isfinite(loss):
            return None
        loss.backward()  # type: ignore[no-untyped-call]
        updates.step()
        losses.append(loss.item())
        recent = losses[-WINDOW:]
        if len(recent) == WINDOW and sum(recent) / WINDOW < LEARNED * math.log(N_CLASSES):
            return step + 1
    return None


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output[0]
    return logits


def truth_of(network: Network) -> dict[str, Any]:
    """Steps until it has learned, by optimizer and learning rate, per seed; None: never.

    A lower rate is tried only where the higher one does not do, and a third seed only where the
    first two differ: the majority is known without it.
    """
    found: dict[str, Any] = {}
    for optimizer, (_, rates, _) in RECIPES.items():
        found[optimizer] = {}
        for rate in rates:
            steps: list[int | None] = []
            for seed in SEEDS:
                if not _is_decided(steps):
                    steps.append(learn(network, optimizer, rate, seed))
            found[optimizer][str(rate)] = steps
            if trains({optimizer: found[optimizer]}, optimizer):
                break
    return found


def _is_decided(steps: list[int | None]) -> bool:
    n_learned = sum(step is not None for step in steps)
    return max(n_learned, len(steps) - n_learned) >= MAJORITY


def trains(truth: dict[str, Any], optimizer: str) -> bool:
    return any(
        sum(step is not None for step in steps) >= MAJORITY for steps in truth[optimizer].values()
    )


@app.command
def train(only: str = "", results: Path = TRUTH) -> None:
    """Train every network that has no result yet."""
    found = _read(results)
    for network in networks():
        if only not in network.name or network.name in found:
            continue
        start = time.perf_counter()
        truth = truth_of(network)
        found[network.name] = truth
        _write(results, found)
        print(f"{time.perf_counter() - start:6.1f} s  {network.name}: {truth}", flush=True)


@app.command
def measure(only: str = "", results: Path = CHECKS) -> None:
    """Check every network that has no result yet, as a user would: by its factory and its shape."""
    found = _read(results)
    for network in networks():
        if only not in network.name or network.name in found:
            continue
        checked = gradflow.check(network.build, network.shape, draws=DRAWS)
        typical = checked.path.typical
        found[network.name] = {
            "outlook": checked.outlook,
            "cause": checked.cause,
            "decades": to_json(typical.delta.decades),
            "n_without": typical.delta.n_without,
            "differing": to_json(typical.differing),
            "output_rms": to_json(typical.output_rms),
            "norm": checked.norm,
        }
        _write(results, found)


# -- truth and check together ------------------------------------------------------------------


@app.command
def judge(truths: Path = TRUTH, checks: Path = CHECKS, figure: Path = FIGURE) -> None:
    """Print hits and false alarms in both halves, and draw the curves of the test half."""
    truth, check = _read(truths), _read(checks)
    summary = summarise(truth, check)
    _write(RESULTS / "zoo.json", summary)
    for name, one in summary.items():
        print(f"{name}: {json.dumps(one)}")
    draw(truth, check, figure)


def n_optimizers(truth: dict[str, Any]) -> int:
    """With how many of the two a network trains."""
    return sum(trains(truth, optimizer) for optimizer in RECIPES)


def score(check: dict[str, Any]) -> float:
    """How far a network lies beyond the limits, 1 being at one of them: what the curves turn on."""
    if check["n_without"] or check["output_rms"] is None or check["cause"] and not _is_known(check):
        return math.inf
    decades = check["decades"] or 0.0
    return max(
        decades / (GROWN.value if decades > 0 else SHRUNK.value),
        math.log10(max(check["output_rms"], 1e-300)) / math.log10(LOUD.value),
        math.log10(max(check["differing"], 1e-300)) / math.log10(ALIKE.value),
    )


def _is_known(check: dict[str, Any]) -> bool:
    return check["decades"] is not None and check["differing"] is not None


def summarise(truth: dict[str, Any], check: dict[str, Any]) -> dict[str, Any]:
    """Counts of labels by truth, rates with Wilson's intervals, and the ranges of what trains."""
    found: dict[str, Any] = {}
    for part in ("set", "test"):
        table = {
            how: {outlook: 0 for outlook in OUTLOOKS}
            for how in ("neither", "one optimizer", "both")
        }
        for name, one in truth.items():
            if half(name) == part:
                table[list(table)[n_optimizers(one)]][check[name]["outlook"]] += 1
        found[part] = table | {
            "hits": _rate(_flagged(table["neither"]), sum(table["neither"].values())),
            "false alarms": _rate(_flagged(table["both"]), sum(table["both"].values())),
        }
    known = [
        (check[name]["norm"], check[name]["decades"])
        for name, one in truth.items()
        if n_optimizers(one) == 2 and check[name]["decades"] is not None
    ]
    found["trained"] = {
        norm: [len(values := [x for of, x in known if of == norm]), min(values), max(values)]
        for norm in sorted({of for of, _ in known})
    }
    return found


def _flagged(counts: dict[str, int]) -> int:
    return counts["doubtful"] + counts["unlikely to train"]


def _rate(n: int, of: int) -> dict[str, Any]:
    interval = binomtest(n, of).proportion_ci(0.95, method="wilson")
    return {"n": n, "of": of, "share": n / of, "interval": [interval.low, interval.high]}


def draw(truth: dict[str, Any], check: dict[str, Any], path: Path) -> None:
    """ROC of the test half, and the change of δ of every network by what became of it."""
    import matplotlib.pyplot as plt
    import numpy as np

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    test = {name: one for name, one in truth.items() if half(name) == "test"}
    questions = {
        "trains with neither, or with both": lambda one: {0: True, 2: False}.get(n_optimizers(one)),
        "does not train with SGD": lambda one: not trains(one, "sgd"),
        "does not train with AdamW": lambda one: not trains(one, "adamw"),
    }
    for label, fails in questions.items():
        cases = [(score(check[n]), fails(one)) for n, one in test.items() if fails(one) is not None]
        bad = np.array([x for x, failed in cases if failed])
        good = np.array([x for x, failed in cases if not failed])
        limits = np.array([np.inf, *sorted({*bad, *good}, reverse=True), -np.inf])
        hits = [(bad >= limit).mean() for limit in limits]
        alarms = [(good >= limit).mean() for limit in limits[1:]]
        (line,) = left.plot([0, *alarms], [0, *hits[1:]], label=f"{label} ({len(bad)}/{len(good)})")
        left.plot((good >= 1).mean(), (bad >= 1).mean(), "o", color=line.get_color())
    left.set(xlabel="false alarms", ylabel="hits", title="Test half; ● the limits of the label")
    left.legend(loc="lower right", fontsize="small")
    random = np.random.default_rng(0)
    for row in range(3):
        for part, color in (("set", "0.7"), ("test", "C0")):
            x = [
                check[n]["decades"] if check[n]["decades"] is not None else np.nan
                for n, one in truth.items()
                if n_optimizers(one) == row and half(n) == part
            ]
            y = row + random.uniform(-0.25, 0.25, len(x))
            right.plot(
                np.clip(x, -20, 20), y, "o", ms=4, color=color, label=part if not row else ""
            )
    for limit in (SHRUNK, GROWN):
        right.axvline(limit.value, color="0.5", lw=1)
    right.set(
        xlabel="δ, first over last layer (decades; beyond ±20 at the edge)",
        yticks=range(3),
        yticklabels=("neither", "one\noptimizer", "both"),
        title="Every network by what it trains with",
    )
    right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Date": None})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing, one network a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in content.items()]
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    app()
