"""Networks whose truth is known because it is made up: traces, losses and examinations."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradflow.analysis.case import Case
from gradflow.analysis.layers import PATH_KINDS
from gradflow.analysis.network import TrainedNetwork
from gradflow.record import Trace

# A small residual network as torchvision names it, and a plain stack of linear layers.
RESIDUAL = (
    "conv1",
    *(f"layer{stage}.{block}.conv{i}" for stage in (1, 2) for block in (0, 1) for i in (1, 2)),
    "fc",
)
STACK = ("0", "2", "4", "6", "8", "10", "12")
SIZE = 4  # elements of every weight: √SIZE = 2 stands in ŝ and g
N_STEPS = 20
N_LONG = 100
FALLS = np.repeat([1e-3, 1e-5], N_LONG // 2)
SPREAD = 0.02  # decades, nats, …: how much one seed differs from the next


def noise(seed: int, *shape: int) -> np.ndarray:
    """Small, fixed, and different for every seed."""
    values: np.ndarray = np.random.default_rng(1000 + seed).normal(0, SPREAD, shape)
    return values


def make_trace(
    tables: Mapping[str, np.ndarray | Sequence[float] | float],
    names: Sequence[str] = RESIDUAL,
    *,
    n_steps: int = N_STEPS,
    every: int = 1,
    norm: bool = True,
) -> Trace:
    """A trace as the Recorder writes it. `tables`: measure -> a number, or one per layer and step.

    The gradient of an output is that of the norm behind a convolution. What should not be read,
    that of the convolution itself or of the norm's weights, is ten thousand times larger.
    """
    sites = [(site, kind, i) for i, name in enumerate(names) for site, kind in _sites(name, norm)]
    values = {}
    for measure, table in tables.items():
        by_layer = np.broadcast_to(np.asarray(table, dtype=np.float64), (n_steps, len(names)))
        factors = np.array([_factor(measure, kind, norm) for _, kind, _ in sites])
        values[measure] = by_layer[:, [i for _, _, i in sites]] * factors
    return Trace(
        np.arange(n_steps) * every,
        tuple(site for site, _, _ in sites),
        tuple(kind for _, kind, _ in sites),
        np.full(len(sites), SIZE, dtype=np.int64),
        values,
    )


def _sites(name: str, norm: bool) -> list[tuple[str, str]]:
    """A layer and its parameters, and the norm behind a convolution."""
    kind = "conv" if "conv" in name else "linear"
    own = [(name, kind), (f"{name}.weight", f"{kind}.weight")]
    if kind == "linear":
        return [*own, (f"{name}.bias", "linear.bias")]
    behind = name.replace("conv", "bn")
    normed = [
        (behind, "norm"),
        (f"{behind}.weight", "norm.weight"),
        (f"{behind}.bias", "norm.bias"),
    ]
    return [*own, *normed] if norm else own


def _factor(measure: str, kind: str, norm: bool) -> float:
    """1 where a measure should be read, NaN where it is not taken, and else much too large."""
    is_of_outputs = measure.startswith("output")
    if is_of_outputs != ("." not in kind):
        return math.nan
    right = ("norm", "linear") if norm else ("conv", "linear")
    return 1.0 if kind in (right if is_of_outputs else PATH_KINDS) else 1e4


def slope(decades: float, n_layers: int) -> np.ndarray:
    """A profile with this change from the last layer but one to the first; the last stands out."""
    body = 10 ** np.linspace(decades, 0, n_layers - 1)
    return np.append(body, 1e3)


def make_network(
    name: str = "plain",
    seed: int = 0,
    *,
    delta: float = 0.0,
    invariant: float | None = None,
    level: float = 0.0,
    first_moves: float = 1.0,
    tables: Mapping[str, Any] | None = None,
    names: Sequence[str] = RESIDUAL,
    examined: Mapping[str, Any] | None = None,
    loss: float = 0.5,
    accuracy: float = 0.8,
    n_steps: int = N_STEPS,
    **others: Any,
) -> TrainedNetwork:
    """A network of one stack, so that its rates are exact up to the noise of its seed.

    `delta` and `invariant` are decades from last to first layer, of δ and ŝ; `level` decades by
    which all gradients are larger; `first_moves` how far the first third travels, the rest being 1.
    `tables` are further measures, or others in their place.
    """
    n = len(names)
    jitter = noise(seed, 8)
    size = 10 ** (level + jitter[0] / 10)
    moves = np.ones(n)
    moves[: (n - 1) // 3] = first_moves * 10 ** jitter[1]
    delta = delta + float(jitter[2])
    invariant = delta if invariant is None else invariant + float(jitter[3])
    given: dict[str, Any] = {
        "output_grad_norm": size * slope(delta, n),
        "grad_norm": size * slope(invariant, n),
        "weight_norm": 1.0,
        "update_norm": moves,
        **(tables or {}),
    }
    return TrainedNetwork(
        name,
        seed,
        make_trace(given, names, n_steps=n_steps, norm=names is not STACK),
        train_loss=loss + float(jitter[4]) / 4,
        test_accuracy=accuracy + float(jitter[5]) / 4,
        examined=examined or {},
        **others,
    )


def group(n_seeds: int = 5, shift: int = 0, **given: Any) -> list[TrainedNetwork]:
    """One network for each seed. What is a function of the seed is called with it.

    With a `shift` they are noisy in another way: seeds are shifted by it, then named back.
    """
    return [
        replace(
            make_network(
                seed=seed,
                **{key: one(seed) if callable(one) else one for key, one in given.items()},
            ),
            seed=seed - shift,
        )
        for seed in range(shift, shift + n_seeds)
    ]


def make_case(
    accused: Mapping[str, Any], reference: Mapping[str, Any] | None = None, n_seeds: int = 5
) -> Case:
    """A case of seeds 0 to `n_seeds` - 1. The names are plain and residual."""
    mine = group(n_seeds, **{"name": "plain", **accused})
    if reference is None:
        return Case.of(mine)
    return Case.of(mine, group(n_seeds, 100, **{"name": "residual", **reference}))


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings on top of each other."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in copy.deepcopy(dict(part)).items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


# -- longer trainings, with a learning rate that falls half-way ------------------------------------


def losses(fall: float, seed: int, last: float = 0.3) -> np.ndarray:
    """Down by `fall` until the learning rate falls, a `last` part of it in the second half."""
    before = 2 - fall * np.concatenate([np.linspace(0, 1 - last, 25), np.linspace(1 - last, 1, 25)])
    jitter = np.random.default_rng(seed).normal(0, 0.002, N_LONG)
    jitter[0] = 0
    return np.concatenate([before, np.full(50, before[-1])]) + jitter


def scheduled(fall: float, *, last: float = 0.3) -> dict[str, Any]:
    return {
        "n_steps": N_LONG,
        "learning_rates": FALLS,
        "losses": lambda seed: losses(fall, seed, last),
    }


# -- what an examination holds, as training/examination.py writes it -------------------------------


def reset(cost: float, seed: int = 0) -> dict[str, Any]:
    start = 0.4
    end = {"layers": ["conv1"], "loss": start, "loss_reset": start + cost + wobble(seed)}
    return {"reset": {"end": end}}


def dead(share: float, seed: int = 0, step: str = "90") -> dict[str, Any]:
    n = 100_000
    return {"dead": {step: {"layer1": [0, n], "layer2": [round((share + wobble(seed)) * n), n]}}}


def batchnorm(
    *, train: float = 0.3, running: float = 0.6, recalibrated: float = 0.6, seed: int = 0
) -> dict[str, Any]:
    """Losses at the end: on training images, and on test images in two modes."""

    def modes(running: float, recalibrated: float) -> dict[str, Any]:
        losses = {"running": running, "recalibrated": recalibrated, "batch": recalibrated}
        return {mode: {"loss": loss, "accuracy": 0.5} for mode, loss in losses.items()}

    parts = {
        "train": {"plain": modes(train, train)},
        "test": {"plain": modes(running + wobble(seed), recalibrated)},
    }
    return {"batchnorm": {"end": parts}}


def rank(ranks: float, probe_drop: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """`ranks` of the deepest third of nine activations; all others have rank 60."""
    best = 0.9
    found = {
        "sites": [f"relu{i}" for i in range(9)],
        "effective_rank": [60.0] * 6 + [ranks * 10 ** wobble(seed)] * 3,
        "stable_rank": [5.0] * 9,
        "probe_accuracy": [best] * 6 + [best - probe_drop - abs(wobble(seed))] * 3,
    }
    return {"rank": {"0": found, "10": copy.deepcopy(found)}}


def noise_scale(progress: float, seed: int = 0) -> dict[str, Any]:
    """A step makes this part of the progress of one without noise."""
    progress += wobble(seed)
    found = {
        "signal": progress, "noise": 50 * (1 - progress), "batch_size": 50,
        "signal_interval": [progress / 2, 2 * progress],
    }  # fmt: skip
    return {"noise": {"10": {"all": found}}}


def wobble(seed: int) -> float:
    """A thousandth either way: enough spread for a t test, too little to blur a threshold."""
    return float(noise(seed, 1)[0]) / 20
