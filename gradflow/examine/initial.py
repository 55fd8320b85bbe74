"""The state at the start: what a fresh initialisation does to the signal and to its gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradflow.analysis.layers import UNREACHED, Layer, body, depth_note, left_out, main_path, paths
from gradflow.analysis.profile import GRADIENT_SIZES, columns, layer_table
from gradflow.analysis.rates import Rate
from gradflow.analysis.statistics import Interval, t_interval
from gradflow.examine.passes import (
    Input,
    Model,
    Pass,
    check_arguments,
    copied,
    draw_head_if_zero,
    drawn,
    made,
    pass_through,
)
from gradflow.examine.trainability import (
    DIFFERING,
    OUTLOOKS,
    Cause,
    Outlook,
    Prospect,
    norm_of,
    typical,
)
from gradflow.lazy import renamed_arguments
from gradflow.record import NonFinite, Trace
from gradflow.typed import to_json

TRANSPORT = "output_gradient"  # the size that the label is about


@dataclass(frozen=True)
class InitialProfile:
    """One size of the signal or of its gradient by depth, over the draws."""

    symbol: str
    unit: str
    per_draw: np.ndarray  # (draws, layers), input first

    @property
    def median(self) -> np.ndarray:
        """(layers,): over the draws; NaN where nothing finite was measured."""
        finite = [column[np.isfinite(column)] for column in self.per_draw.T]
        return np.array([np.median(column) if len(column) else np.nan for column in finite])

    @property
    def change(self) -> Interval:
        """log10 of the first layer over the last, one number per draw."""
        return t_interval([Rate(row).decades for row in self.per_draw])

    @property
    def rate(self) -> Rate:
        """Of the median over the draws."""
        return Rate(self.median)

    def to_json(self) -> dict[str, Any]:
        rate, change = self.rate, self.change
        total = {"mean": change.mean, "low": change.low, "high": change.high, "n": change.n}
        return {
            "symbol": self.symbol,
            "unit": self.unit,
            "median": to_json(self.median),
            "per_draw": to_json(self.per_draw),
            "first_over_last_decades": to_json(total),
            "span_decades": to_json(rate.span),
            "slope_decades_per_layer": to_json(rate.decades_per_layer),
            "residual_decades": to_json(rate.residual),
        }


@dataclass(frozen=True)
class PathCheck:
    """What the draws show along one path through the network, without its classifier.

    `profiles` holds "forward", the rms of each layer's output z, and the sizes of the gradient that
    `GRADIENT_SIZES` defines. Where a norm follows right behind a layer, z is the norm's output,
    which it sets to about 1.
    """

    layers: tuple[str, ...]
    profiles: dict[str, InitialProfile]
    prospects: tuple[Prospect, ...]  # one per draw

    @property
    def typical(self) -> Prospect:
        """The draw in the middle."""
        return typical(list(self.prospects))


@dataclass(frozen=True)
class InitialCheck:
    """What one forward and one backward pass show, before any training."""

    n_draws: int
    drawn: str  # what differs from draw to draw
    input_shape: tuple[int, ...]  # of the first input, with the batch
    loss: str
    has_zero_head: bool  # the last layer starts at or near zero; it was drawn at random to measure
    paths: tuple[PathCheck, ...]
    dead: dict[str, float]  # activation -> share of channels that are 0 for the whole batch
    nonfinite: tuple[NonFinite, ...]  # the first place first; `first_step` is the draw
    norm: str  # "BatchNorm", "LayerNorm" or "no norm": what the network compares with
    without_gradient: tuple[str, ...]  # layers whose δ was 0 in every draw, beside the paths too
    unreached: tuple[str, ...]  # layers that ran, or did not, and that no loss depends on
    note: str  # the order of the layers, and those that are left out

    @property
    def path(self) -> PathCheck:
        """The one with the worst outlook; the longest of those that are alike."""
        return max(self.paths, key=lambda path: OUTLOOKS.index(path.typical.outlook))

    @property
    def layers(self) -> tuple[str, ...]:
        return self.path.layers

    @property
    def profiles(self) -> dict[str, InitialProfile]:
        return self.path.profiles

    @property
    def outlook(self) -> Outlook:
        return self.path.typical.outlook

    @property
    def cause(self) -> Cause:
        return self.path.typical.cause

    @property
    def begins_at(self) -> str:
        """The layer from which on, towards the input, too little gradient arrives; "" if none."""
        begins = self.path.typical.begins if self.cause == "vanishing" else None
        return "" if begins is None else self.layers[begins]

    @property
    def label(self) -> str:
        """As `outlook`, with what speaks against it: "unlikely to train: vanishing from 4 on"."""
        place = f" from {self.begins_at} on" if self.begins_at else ""
        return self.outlook + (f": {self.cause}{place}" if self.cause else "")

    @property
    def is_certain(self) -> bool:
        """Whether all draws, of two at least, have the same outlook."""
        outlooks = {one.outlook for one in self.path.prospects}
        return self.n_draws > 1 and len(outlooks) == 1

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def sentences(self) -> list[str]:
        """The result in words, the answer first."""
        from gradflow.examine.words import sentences

        return sentences(self)

    def to_json(self) -> dict[str, Any]:
        """Plain types; None stands for inf and NaN."""
        typical = self.path.typical
        by_name = (
            "label", "outlook", "is_certain", "n_draws", "drawn", "input_shape", "loss",
            "has_zero_head", "note", "without_gradient", "unreached",
        )  # fmt: skip
        return {name: to_json(getattr(self, name)) for name in by_name} | {
            "cause": self.cause or None,
            "begins_at": self.begins_at or None,
            "first_over_last_decades": to_json(typical.delta.decades),
            "differing_share": to_json(typical.differing),
            "output_rms": to_json(typical.output_rms),
            "paths": [
                {
                    "layers": list(path.layers),
                    "outlook": path.typical.outlook,
                    "cause": path.typical.cause or None,
                    "profiles": {name: one.to_json() for name, one in path.profiles.items()},
                }
                for path in self.paths
            ],
            "dead": {"unit": "share of channels", "by_activation": dict(self.dead)},
            "nonfinite": [
                {"draw": n.first_step, "site": n.site, "measure": n.measure, "elements": n.count}
                for n in self.nonfinite
            ],
            "sentences": self.sentences(),
        }


@renamed_arguments(input="input_size")
def check(
    model: Model,
    input_size: Input = None,
    *,
    draws: int = 5,
    batch_size: int = 8,
    labels: Tensor | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> InitialCheck:
    """Signal forward and gradient backward at the initialisation, without any training.

    Give a function that makes the network, `lambda: Net(10)`, and every draw starts from fresh
    weights: then the draws tell how much the luck of the initialisation counts. A network that is
    there already is one draw of the weights, and only input and labels are drawn anew; it is
    measured in copies, so that neither it nor the random numbers of torch change by a bit.

    `input_size` is the shape of one input, `(3, 224, 224)`, of which batches of standard normal
    numbers are drawn, or a batch of your own (of token ids, say); for a network of several inputs a
    list of them. A function may return the network and its inputs, `return net, (images, ages)`;
    then give no `input_size`. Each draw is one forward and one backward pass in train mode, all
    parameters being trainable. The loss is the cross-entropy where the output has shape (B, K),
    against `labels` of shape (B,) if given, else random ones; otherwise ⟨v, z⟩ / B of the output z,
    with v standard normal. The losses of several outputs are added.

    The label says whether such networks train: see `examine.trainability`. `progress` is told the
    number of finished draws. Raises ValueError for an input that the model does not accept, and for
    a model without two weight layers behind each other.

    >>> blocks = [nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(20)]
    >>> check(nn.Sequential(*blocks), (64,)).outlook
    'unlikely to train'
    """
    check_arguments(model, input_size, {"draws": draws, "batch_size": batch_size, "seed": seed})
    make = (lambda: copied(model)) if isinstance(model, nn.Module) else model
    passes: list[Pass] = []
    redrawn, example = False, None
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(cuda):
        # Those of different `seed` share none, as seed + draw would.
        drawn_seeds = np.random.SeedSequence(seed).generate_state(draws, np.uint64)
        for draw, one_seed in enumerate(drawn_seeds):
            torch.manual_seed(int(one_seed))
            example, batch = made(make, input_size, batch_size)
            redrawn |= draw_head_if_zero(example)
            passes.append(pass_through(example, batch, labels, draw))
            if progress is not None:
                progress(draw + 1)
    assert example is not None
    trace = Trace.concat([one.trace for one in passes])
    main_path(trace)  # says so where there is no depth
    return InitialCheck(
        n_draws=draws,
        drawn=drawn(model, input_size, labels),
        input_shape=passes[0].input_shape,
        loss=" and ".join(sorted({one.loss for one in passes})),
        has_zero_head=redrawn,
        paths=tuple(_along(path, trace) for path in paths(trace)),
        dead=_dead(trace),
        nonfinite=tuple(trace.nonfinite()),
        norm=norm_of(example),
        without_gradient=_without_gradient(trace),
        unreached=left_out(trace).get(UNREACHED, ()),
        note=depth_note(trace),
    )


def _along(path: Sequence[Layer], trace: Trace) -> PathCheck:
    layers = body(path)
    outputs = [layer.output for layer in layers]
    profiles = {
        "forward": InitialProfile("rms(z)", "activation", columns(trace, "output_rms", outputs))
    }
    for name, size in GRADIENT_SIZES.items():
        values = layer_table(trace, name, layers).values
        profiles[name] = InitialProfile(size.symbol, size.unit, values)
    deltas = _with_unseen(profiles[TRANSPORT].per_draw, profiles["scale_invariant"].per_draw)
    bad = {one.first_step for one in trace.nonfinite()}
    last = [path[-1].output]
    shares, rms = (columns(trace, name, last)[:, 0] for name in (DIFFERING.name, "output_rms"))
    prospects = tuple(
        Prospect(Rate(delta), float(share), float(size), int(step) not in bad)
        for step, delta, share, size in zip(trace.steps, deltas, shares, rms, strict=True)
    )
    return PathCheck(tuple(layer.name for layer in layers), profiles, prospects)


def _with_unseen(delta: np.ndarray, invariant: np.ndarray) -> np.ndarray:
    """(draws, layers): δ, and 0 from the input on while a layer, or its weight where δ is not seen
    inside one module, has no gradient at all."""
    is_gone = (delta == 0) | (np.isnan(delta) & (invariant == 0))
    return np.where(np.logical_and.accumulate(is_gone, axis=1), 0.0, delta)


def _without_gradient(trace: Trace) -> tuple[str, ...]:
    """The layers whose δ was exactly 0, or too small for the number format, in every draw."""
    found = {layer.name: layer.output for path in paths(trace) for layer in body(path)}
    found |= {name: name for names in left_out(trace).values() for name in names}
    is_zero = (columns(trace, "output_grad_norm", [*found.values()]) == 0).all(axis=0)
    return tuple(name for name, zero in zip(found, is_zero, strict=True) if zero)


def _dead(trace: Trace) -> dict[str, float]:
    """Activation -> mean over draws, of those that gave an exact 0 to a whole channel at all."""
    table = trace.select("output_dead_fraction", ["activation"])
    shares = np.nanmean(table.values, axis=0) if table.sites else np.zeros(0)
    return {site: float(share) for site, share in zip(table.sites, shares, strict=True)}
