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
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from zoo_networks import N_CLASSES, Network, networks

import gradflow
from gradflow.examine.trainability import plain

RESULTS = Path(__file__).parent / "results"
TRUTH = RESULTS / "zoo-truth.json"
CHECKS = RESULTS / "zoo-check.json"
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
            "decades": plain(typical.delta.decades),
            "n_without": typical.delta.n_without,
            "differing": plain(typical.differing),
            "output_rms": plain(typical.output_rms),
            "norm": checked.norm,
        }
        _write(results, found)


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
