"""Claim: a rival explanation is found where its defect was planted, and not where another was.

Small networks learn the bundled digits in pairs: the reference, and one that differs by a single
defect, planted on purpose. Each defect is the positive control of its rival and a negative control
of all others; two more conditions have no defect that any rival names. A case is five paired seeds,
judged as `gradflow diagnose` judges them.

    python experiments/rival_controls.py            # goes on where it was stopped
    python experiments/rival_controls.py --cases 3  # a quick look, printed and not kept

Results: experiments/results/rival-controls.json, from which `TRIED` in gradflow/analysis/rivals.py
is copied; a test holds the two together.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradflow import Recorder
from gradflow.analysis.case import Case
from gradflow.analysis.findings import decide
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.rivals import rivals
from gradflow.examine.activations import by_stage, dead_channels
from gradflow.examine.batchnorm import recalibrated
from gradflow.examine.noise import gradient_noise
from gradflow.examine.rank import effective_rank, features, probe_accuracy
from gradflow.files import write_json

RESULTS = Path(__file__).parent / "results" / "rival-controls.json"
N_CASES, N_SEEDS = 16, 5
N_STEPS, FALLS_AT = 360, 120
WIDTH, DEPTH = 32, 5
N_TRAIN, N_RANKED = 1200, 400


@dataclass(frozen=True)
class Condition:
    """How the accused network or its training differs from the reference's."""

    name: str
    key: str  # of the rival that names this defect; "" where none does
    batch_size: int = 32
    lr: float = 3e-3
    n_images: int = N_TRAIN
    n_dead: int = 0  # channels of the third layer
    bottleneck: int = WIDTH  # width of the third layer
    momentum: float = 0.1  # of BatchNorm's running statistics
    slope: float = 0.0  # of the activation below 0

    def network(self, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        widths = [64, *(WIDTH for _ in range(DEPTH))]
        widths[3] = self.bottleneck
        layers: list[nn.Module] = []
        for i in range(DEPTH):
            norm = nn.BatchNorm1d(widths[i + 1], momentum=self.momentum)
            if i == 2:
                nn.init.constant_(norm.bias[: self.n_dead], -10.0)
            act = nn.LeakyReLU(self.slope) if self.slope else nn.ReLU()
            layers += [nn.Linear(widths[i], widths[i + 1], bias=False), norm, act]
        return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


REFERENCE = Condition("reference", "")
CONDITIONS = (
    Condition("a network that learns slowly under a schedule that freezes", "H5", lr=3e-4),
    Condition("batches of 2 images in place of 32", "H8", batch_size=2),
    Condition("28 of 32 units of a layer dead", "H4", n_dead=28),
    Condition("BatchNorm statistics that lag", "H6", momentum=0.002),
    Condition("60 training images in place of 1,200", "H7", n_images=60),
    Condition("a bottleneck of 1 unit", "H9", bottleneck=1),
    Condition("activations that are nearly linear", "", slope=0.97),
    Condition("no defect", ""),
)


@dataclass(frozen=True)
class Digits:
    """Images (n, 64) in standard units and labels, of one seed's split."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits(seed: int) -> Digits:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor((images - images.mean()) / images.std(), dtype=torch.float32)
    y = torch.tensor(labels)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    train, test = order[:N_TRAIN], order[N_TRAIN:]
    return Digits((x[train], y[train]), (x[test], y[test]))


def batches(data: Digits, condition: Condition, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled without end."""
    random = np.random.default_rng(seed)
    x, y = (part[: condition.n_images] for part in data.train)
    while True:
        order = torch.from_numpy(random.permutation(len(y)))
        for start in range(0, len(y) - condition.batch_size + 1, condition.batch_size):
            chosen = order[start : start + condition.batch_size]
            yield x[chosen], y[chosen]


@cache
def trained(condition: Condition, name: str, seed: int, init: int) -> TrainedNetwork:
    """One training with what a rival is judged by, as `gradflow train` keeps it."""
    data, model = digits(seed), condition.network(init)
    optimizer = torch.optim.AdamW(model.parameters(), lr=condition.lr, fused=True)
    rates = np.where(np.arange(N_STEPS) < FALLS_AT, condition.lr, condition.lr / 100)
    examined: dict[str, Any] = {"dead": {}, "rank": {}, "noise": {}, "batchnorm": {}}
    losses = []
    stream = batches(data, condition, seed)
    with Recorder(model, optimizer, every=N_STEPS // 3) as recorder:
        for step, rate in enumerate(rates):
            if step in (0, 10):
                examined["rank"][str(step)] = rank(model, data, with_probe=step == 10)
            if step == 10:
                examined["noise"]["10"] = noise(model, data, condition, seed)
            if step == 90:
                x = [data.train[0]]
                examined["dead"]["90"] = by_stage(dead_channels(recalibrated(model, x), x))
            optimizer.param_groups[0]["lr"] = float(rate)
            x, y = next(stream)
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    examined["batchnorm"]["end"] = qualities(model, data, condition)
    return TrainedNetwork(
        name, seed, recorder.trace, losses=np.array(losses), learning_rates=rates,
        train_loss=examined["batchnorm"]["end"]["train"]["plain"]["recalibrated"]["loss"],
        examined=examined,
    )  # fmt: skip


def rank(model: nn.Module, data: Digits, *, with_probe: bool) -> dict[str, Any]:
    """The probe at step 10 alone: that is the one that the rival reads."""
    x, y = (part[:N_RANKED] for part in data.train)
    found = features(recalibrated(model, [x]), [x])
    tables = found.values()
    probes = [probe_accuracy(table, y.numpy()) for table in tables] if with_probe else []
    return {
        "effective_rank": [effective_rank(table) for table in tables],
        "probe_accuracy": probes,
    }


def noise(model: nn.Module, data: Digits, condition: Condition, seed: int) -> dict[str, Any]:
    stream = batches(data, condition, seed + 1)
    drawn = [next(stream) for _ in range(min(8, condition.n_images // condition.batch_size))]
    if len(drawn) < 3:
        return {}
    return {"all": gradient_noise(model, drawn, cross_entropy)["all"].to_json()}


@torch.no_grad()
def qualities(model: nn.Module, data: Digits, condition: Condition) -> dict[str, Any]:
    """The loss by part and BatchNorm mode, of the images that this network was trained on."""
    x, y = (part[: condition.n_images] for part in data.train)
    models = {"running": model.eval(), "recalibrated": recalibrated(model, [x])}
    parts = {"train": (x, y), "test": data.test}
    return {
        name: {
            "plain": {
                mode: {"loss": cross_entropy(one(images), labels).item()}
                for mode, one in models.items()
            }
        }
        for name, (images, labels) in parts.items()
    }


def answers(condition: Condition, case: int) -> dict[str, str]:
    """The status of every rival over five paired seeds."""
    seeds = [100 * case + seed for seed in range(N_SEEDS)]
    other = 50 if condition.name == "no defect" else 0  # then the first weights differ
    mine = [trained(condition, "accused", seed, seed + other) for seed in seeds]
    theirs = [trained(REFERENCE, "reference", seed, seed) for seed in seeds]
    return {one.key: one.status for one in decide(rivals(Case.of(mine, theirs)))}


def counted(said: list[str]) -> dict[str, int]:
    return {status: said.count(status) for status in sorted(set(said))}


def table(found: dict[str, dict[str, dict[str, str]]]) -> dict[str, Any]:
    """Of every rival: how often it was found where planted, and where another defect was."""
    rows: dict[str, Any] = {}
    for key in ("H4", "H5", "H6", "H7", "H8", "H9"):
        said = {name: [one[key] for one in cases.values()] for name, cases in found.items()}
        planted = next(one.name for one in CONDITIONS if one.key == key)
        others = [
            status
            for name, all_ in said.items()
            for status in all_
            if name != planted and status != "not measured"
        ]
        rows[key] = {
            "planted": planted,
            "hits": said[planted].count("yes"),
            "n_planted": len(said[planted]),
            "false_alarms": others.count("yes"),
            "n_others": len(others),
            "by_condition": {name: counted(all_) for name, all_ in said.items()},
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, help="so many of each condition, kept nowhere")
    n_cases = parser.parse_args().cases
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() and not n_cases else {}
    found = kept.get("answers", {})
    for case in range(n_cases or N_CASES):
        for condition in CONDITIONS:
            done = found.setdefault(condition.name, {})
            if str(case) in done:
                continue
            done[str(case)] = answers(condition, case)
        if not n_cases:
            write_json(RESULTS, {"rivals": table(found), "answers": found})
    for key, row in table(found).items():
        print(
            f"{key}: found {row['hits']} of {row['n_planted']} ({row['planted']}); false alarms "
            f"{row['false_alarms']} of {row['n_others']} {row['by_condition']}"
        )


if __name__ == "__main__":
    main()
