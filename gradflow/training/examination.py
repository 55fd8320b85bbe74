"""What the kept weights of one network say of the rival explanations."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradflow.analysis.network import third
from gradflow.data import Batch, Batches
from gradflow.examine.activations import by_stage, dead_channels
from gradflow.examine.batchnorm import divergence, recalibrated, with_batch_statistics
from gradflow.examine.noise import MIN_BATCHES, gradient_noise
from gradflow.examine.path import path_layers, path_weights, reset_layers
from gradflow.examine.rank import effective_rank, features, probe_accuracy, stable_rank
from gradflow.files import drop_unfinished
from gradflow.training.config import TrainConfig
from gradflow.training.evaluate import Predictions, evaluate
from gradflow.training.images import Data
from gradflow.training.rundir import NetworkDir
from gradflow.training.weights import load_tensors
from gradflow.typed import to_json

MAX_IMAGES = 1000  # of each part, so that a large data set takes no longer
MAX_NOISE_BATCHES = 8  # each costs two gradients; the jackknife's interval says what they are worth
SUBSET_SEED = 0  # the same images for every network, so that networks can be compared

# After which optimizer steps weights are kept for the measurements of the rival explanations, in
# the order of their worth: the start, the early steps, the end of the original's first stage of the
# learning rate.
WEIGHT_STEPS = (0, 10, 90)

Which = int | Literal["last"]
Step = dict[str, Any]

# What is measured at which weights, if they were kept, in the order of worth for a verdict, in
# which a budget is spent: what answers H8, H4, H6 and H7, H9, then link 3, and then what is told
# beside.
WORTH: tuple[tuple[str, Which], ...] = (
    ("noise", 10), ("dead", 90), ("batchnorm", "last"), ("rank", 0), ("rank", 10),
    ("reset", "last"), ("dead", "last"),
)  # fmt: skip

QUALITY = ("loss", "cross_entropy", "accuracy", "balanced_accuracy")


def examine_network(
    network: NetworkDir,
    config: TrainConfig,
    data: Data,
    *,
    device: torch.device | str = "cpu",
    max_steps: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure the weights that `network` kept, on at most 1000 images of each part.

    `config` is a resolved one. Returns plain JSON types, by measurement and then by optimizer step
    ("0", "10", …, "end"); docs/run-files.md lists them. What was measured before stays. What needs
    weights that were not kept, or more images than there are, is left out; None stands for what is
    not finite. `max_steps` is what it may cost, in optimizer steps of the training, which are
    counted and not timed, so that the choice comes out alike everywhere; what is dearer stands
    under "left". Deterministic, in float32 or what `device` makes of it; the weights on disk and
    the global random numbers stay. `progress` is told how many measurements are done, of how many.
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        material = _Material(network, config, data, device)
        result = _found_before(material)
        wanted = [point for point in _points(network) if _key(point[1]) not in result[point[0]]]
        chosen = _affordable(wanted, _costs(material, len(result["path"])), max_steps)
        left = [one for one in wanted if one not in chosen]
        result["left"] = [[name, _key(which)] for name, which in left]
        n_done = 0
        if progress is not None:
            progress(n_done, len(chosen))
        for which in dict.fromkeys(which for _, which in chosen):  # so that each loads once
            examined = _Examined(material, which)
            for name in (name for name, step in chosen if step == which):
                found = MEASUREMENTS[name](examined)
                if found is not None:
                    result[name][_key(which)] = to_json(found)
                n_done += 1
                if progress is not None:
                    progress(n_done, len(chosen))
    return result


def lacks_rivals(network: NetworkDir, config: TrainConfig) -> bool:
    """Whether the rival explanations of a finished network are wanted and were not measured."""
    return config.log_grads and config.rivals and network.examination() is None


def finish_network(
    network: NetworkDir,
    config: TrainConfig,
    data: Data,
    accelerator: Accelerator,
    on_measured: Callable[[int, int], None] = lambda n_done, n: None,
) -> None:
    """What is left when a network has its evaluation, in case a process was killed before it.

    Examines the kept weights, if that is wanted and was not done, as far as `rivals_budget` goes,
    of the steps that were taken. Then only those weights stay that fit into their part of the other
    budget. What goes wrong is a warning: the training is complete, and other networks wait.
    """
    network.checkpoint.unlink(missing_ok=True)
    drop_unfinished(network.path)
    if not lacks_rivals(network, config):
        return
    try:
        found = examine_network(
            network,
            config,
            data,
            device=accelerator.device,
            max_steps=config.rivals_budget * network.history()[-1]["step"],
            progress=on_measured,
        )
    except (RuntimeError, ValueError, ArithmeticError, FileNotFoundError) as error:
        warnings.warn(
            f"The rival explanations of {network.name} could not be measured ({error!r}). Its "
            "training is complete; `gradflow diagnose RUN --measure` tries again, with the folder "
            "of the run or of its study.",
            stacklevel=2,
        )
        return
    network.save_examination(found)
    n_bytes = network.weights("last").stat().st_size
    budget = config.checkpoint_budget * 2**30 / len(config.networks) / len(config.seed_list)
    stay = WEIGHT_STEPS[: int(budget // n_bytes)]
    for step in set(network.weight_steps()) - set(stay):
        network.weights(step).unlink()


def _found_before(material: "_Material") -> dict[str, Any]:
    before = material.network.examination() or {
        "n_images": len(material.labels),
        "batch_size": material.config.batch_size,
        "path": path_weights(_Examined(material, "last").model),
    }
    return before | {name: dict(before.get(name, {})) for name in MEASUREMENTS}


def _key(which: Which) -> str:
    return "end" if which == "last" else str(which)


def _points(network: NetworkDir) -> list[tuple[str, Which]]:
    """What to measure of the weights that were kept and of the last ones."""
    kept = ("last", *network.weight_steps())
    return [(name, which) for name, which in WORTH if which in kept]


def _affordable(
    points: Sequence[tuple[str, Which]], costs: Mapping[str, float], max_steps: float
) -> list[tuple[str, Which]]:
    """In their order, each that still fits; recalibrating the weights of a step is paid once."""
    chosen: list[tuple[str, Which]] = []
    paid: set[Which] = set()
    for name, which in points:
        recalibrates = name in RECALIBRATED and which not in paid
        cost = costs[name] + costs["recalibration"] * recalibrates
        if cost <= max_steps:
            max_steps -= cost
            chosen.append((name, which))
            paid |= {which} if recalibrates else set()
    return chosen


# Those that look at a network with recalibrated BatchNorm.
RECALIBRATED = ("dead", "batchnorm", "rank", "reset")


def _costs(material: "_Material", n_layers: int) -> dict[str, float]:
    """What each measurement costs, in optimizer steps of the training.

    Of the CPU time of a ResNet-34 (width 0.25, 8 px, batch 50): a step took 42 ms, a batch in eval
    mode a quarter of one, a recalibrating batch a half, and a layer's rank and probe a whole one.
    Wider networks and larger images have dearer steps, so that there the layers cost less.
    """
    train, test = (len(material.batches(part, "plain")) for part in ("train", "test"))
    return {
        "recalibration": 0.5 * train,
        "dead": 0.5 * train,
        "batchnorm": 0.25 * 3 * 2 * (train + test),
        "rank": 0.25 * train + n_layers,
        "reset": 0.5 * train + 0.25 * 2 * train,
        "noise": 2.0 * MAX_NOISE_BATCHES,
    }


@dataclass(frozen=True)
class _Material:
    """One network's files, and the images to look at; the same for all its weights."""

    network: NetworkDir
    config: TrainConfig
    data: Data
    device: torch.device

    def batches(self, part: str, transform: str) -> Batches:
        """At most MAX_IMAGES of "train" or "test", "augmented" or "plain", in one order.

        Batches of the training's size which, as there, leave out a last one of one image.
        """
        batches = self.data.training(self.config, self.network.seed)
        indices = np.random.default_rng(SUBSET_SEED).permutation(getattr(self.data.split, part))
        augmentation = batches.augmentation if transform == "augmented" else None
        return replace(batches, indices=indices[:MAX_IMAGES], augmentation=augmentation)

    def epoch(self, part: str, transform: str) -> Iterator[Batch]:
        layout = self.config.channels_last
        return self.batches(part, transform).epoch(0, device=self.device, channels_last=layout)

    def images(self, part: str, transform: str) -> Iterator[Tensor]:
        return (batch.images for batch in self.epoch(part, transform))

    @cached_property
    def labels(self) -> np.ndarray:
        """Of the training images, in the order of their batches."""
        return np.concatenate(
            [batch.labels.cpu().numpy() for batch in self.epoch("train", "plain")]
        )

    def recalibrated(self, model: nn.Module) -> nn.Module:
        """With the population statistics of augmented training images.

        Those are what the running statistics estimate, also where other images are evaluated: so
        the two differ by the estimate alone, and by no transform.
        """
        return recalibrated(model, self.images("train", "augmented"))


@dataclass(frozen=True)
class _Examined:
    """The network at one step."""

    on: _Material
    which: Which

    @cached_property
    def model(self) -> nn.Module:
        """As training left it, in eval mode."""
        network, config = self.on.network, self.on.config
        model = network.load_model(config, len(self.on.data.class_names), self.which)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        moved: nn.Module = model.to(self.on.device, memory_format=layout)  # type: ignore[call-overload]
        return moved

    @cached_property
    def recalibrated(self) -> nn.Module:
        return self.on.recalibrated(self.model)


def _dead(examined: _Examined) -> Step:
    images = examined.on.images("train", "plain")
    return by_stage(dead_channels(examined.recalibrated, images))


def _batchnorm(examined: _Examined) -> Step:
    models = {
        "running": examined.model,
        "recalibrated": examined.recalibrated,
        "batch": with_batch_statistics(examined.model),
    }
    table = {
        part: {
            transform: _quality(models, examined.on, part, transform)
            for transform in ("augmented", "plain")
        }
        for part in ("train", "test")
        if len(getattr(examined.on.data.split, part)) > 1  # one image alone is no batch
    }
    return table | {"divergence": divergence(examined.model, examined.recalibrated)}


def _rank(examined: _Examined) -> Step:
    found = features(examined.recalibrated, examined.on.images("train", "plain"))
    return {
        "sites": list(found),
        "effective_rank": [effective_rank(table) for table in found.values()],
        "stable_rank": [stable_rank(table) for table in found.values()],
        "probe_accuracy": [probe_accuracy(table, examined.on.labels) for table in found.values()],
    }


def _reset(examined: _Examined) -> Step | None:
    """The first third of the layers, the classifier not counted, as they were before training."""
    on = examined.on
    if 0 not in on.network.weight_steps():
        return None
    body = path_layers(examined.model)[:-1]
    layers = body[third(len(body), "first")]
    without = reset_layers(examined.model, load_tensors(on.network.weights(0)), layers)
    models = {"": examined.recalibrated, "_reset": on.recalibrated(without)}
    quality = _quality(models, on, "train", "plain")
    found: Step = {"layers": layers}
    for name in ("loss", "accuracy"):
        found |= {name + ending: quality[ending][name] for ending in models}
    return found


def _noise(examined: _Examined) -> Step | None:
    on = examined.on
    pairs = ((batch.images, batch.labels) for batch in on.epoch("train", "augmented"))
    whole = (pair for pair in pairs if len(pair[1]) == on.config.batch_size)
    batches = list(islice(whole, MAX_NOISE_BATCHES))
    if len(batches) < MIN_BATCHES:
        return None
    loss = partial(cross_entropy, label_smoothing=on.config.label_smoothing)
    noise = gradient_noise(examined.model, batches, loss)
    return {name: noise[name].to_json() for name in (*path_weights(examined.model), "all")}


MEASUREMENTS: dict[str, Callable[[_Examined], Step | None]] = {
    "dead": _dead,
    "batchnorm": _batchnorm,
    "rank": _rank,
    "reset": _reset,
    "noise": _noise,
}


@torch.no_grad()
def _quality(
    models: Mapping[str, nn.Module], on: _Material, part: str, transform: str
) -> dict[str, dict[str, float | None]]:
    """How well each model, as it stands, does on one part: one pass, since batches cost as well."""
    logits: dict[str, list[Tensor]] = {name: [] for name in models}
    labels = []
    for batch in on.epoch(part, transform):
        labels.append(batch.labels.cpu())
        for name, model in models.items():
            logits[name].append(model(batch.images).float().cpu())
    truth = torch.cat(labels).numpy()
    return {name: _scores(torch.cat(rows).numpy(), truth, on) for name, rows in logits.items()}


def _scores(logits: np.ndarray, labels: np.ndarray, on: _Material) -> dict[str, float | None]:
    if not np.isfinite(logits).all():
        return dict.fromkeys(QUALITY)
    classes, smoothing = on.data.class_names, on.config.label_smoothing
    report = evaluate(Predictions(logits, labels), classes, smoothing)
    return {name: report[name] for name in QUALITY}
