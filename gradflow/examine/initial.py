"""The state at the start: what a fresh initialisation does to the signal and to its gradient."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradflow.analysis.layers import Layer, body, depth_note, main_path, paths
from gradflow.analysis.profile import GRADIENT_SIZES, columns, layer_table
from gradflow.analysis.rates import Rate
from gradflow.analysis.statistics import Interval, t_interval
from gradflow.examine.trainability import (
    DIFFERING,
    OUTLOOKS,
    Cause,
    Outlook,
    Prospect,
    norm_of,
    plain,
    typical,
)
from gradflow.record import NonFinite, Recorder, Trace
from gradflow.record.sites import first_floating_tensor
from gradflow.typed import shown

Inputs = tuple[Any, ...]  # what the model is called with
Made = nn.Module | tuple[nn.Module, Any]  # a network, or one with its inputs
Model = nn.Module | Callable[[], Made]
Input = tuple[int, ...] | Tensor | Sequence["tuple[int, ...] | Tensor"] | None

# No update is made, so nothing of it is read.
MEASURES = (
    "output_rms", "output_dead_fraction", "output_nonfinite", "output_grad_norm",
    "output_grad_nonfinite", "weight_norm", "grad_norm", "grad_nonfinite", DIFFERING,
)  # fmt: skip

LIMITS = {"draws": (1, 1000), "batch_size": (1, 100_000), "seed": (0, 2**63 - 1)}
MAX_ELEMENTS = 2**31  # 8 GiB of float32
TRANSPORT = "output_gradient"  # the size that the label is about
CROSS_ENTROPY = "cross-entropy against random labels"
OWN_LABELS = "cross-entropy against the given labels"
FUNCTIONAL = "a random linear function of the output"


@dataclass(frozen=True)
class Profile:
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
        return {
            "symbol": self.symbol,
            "unit": self.unit,
            "median": _list(self.median),
            "per_draw": [_list(row) for row in self.per_draw],
            "first_over_last_decades": {
                "mean": plain(change.mean), "low": plain(change.low), "high": plain(change.high),
                "n": change.n,
            },
            "span_decades": plain(rate.span),
            "slope_decades_per_layer": plain(rate.decades_per_layer),
            "residual_decades": plain(rate.residual),
        }  # fmt: skip


@dataclass(frozen=True)
class PathCheck:
    """What the draws show along one path through the network, without its classifier.

    `profiles` holds "forward", the rms of each layer's output z, and the sizes of the gradient that
    `GRADIENT_SIZES` defines. Where a norm follows right behind a layer, z is the norm's output,
    which it sets to about 1.
    """

    layers: tuple[str, ...]
    profiles: dict[str, Profile]
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
    has_zero_head: bool  # the last layer starts at zero; it was drawn at random to measure
    paths: tuple[PathCheck, ...]
    dead: dict[str, float]  # activation -> share of channels that are 0 for the whole batch
    nonfinite: tuple[NonFinite, ...]  # the first place first; `first_step` is the draw
    norm: str  # "BatchNorm", "LayerNorm" or "no norm": what the network compares with
    note: str  # the order of the layers, and those that are left out

    @property
    def path(self) -> PathCheck:
        """The one with the worst outlook; the longest of those that are alike."""
        return max(self.paths, key=lambda path: OUTLOOKS.index(path.typical.outlook))

    @property
    def layers(self) -> tuple[str, ...]:
        return self.path.layers

    @property
    def profiles(self) -> dict[str, Profile]:
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

    @property
    def without_gradient(self) -> tuple[str, ...]:
        """The layers whose δ was exactly 0, or too small for the number format, in every draw."""
        is_zero = (self.profiles[TRANSPORT].per_draw == 0).all(axis=0)
        return tuple(layer for layer, zero in zip(self.layers, is_zero, strict=True) if zero)

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def sentences(self) -> list[str]:
        """The result in words, the answer first."""
        from gradflow.examine.words import sentences

        return sentences(self)

    def to_json(self) -> dict[str, Any]:
        """Plain types; None stands for inf and NaN."""
        typical = self.path.typical
        return {
            "label": self.label,
            "outlook": self.outlook,
            "cause": self.cause or None,
            "begins_at": self.begins_at or None,
            "is_certain": self.is_certain,
            "n_draws": self.n_draws,
            "drawn": self.drawn,
            "input_shape": list(self.input_shape),
            "loss": self.loss,
            "has_zero_head": self.has_zero_head,
            "first_over_last_decades": plain(typical.delta.decades),
            "differing_share": plain(typical.differing),
            "output_rms": plain(typical.output_rms),
            "paths": [
                {
                    "layers": list(path.layers),
                    "outlook": path.typical.outlook,
                    "cause": path.typical.cause or None,
                    "profiles": {name: one.to_json() for name, one in path.profiles.items()},
                }
                for path in self.paths
            ],
            "note": self.note,
            "dead": {"unit": "share of channels", "by_activation": dict(self.dead)},
            "without_gradient": list(self.without_gradient),
            "nonfinite": [
                {"draw": n.first_step, "site": n.site, "measure": n.measure, "elements": n.count}
                for n in self.nonfinite
            ],
            "sentences": self.sentences(),
        }


def check(
    model: Model,
    input: Input = None,
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

    `input` is the shape of one input, `(3, 224, 224)`, of which batches of standard normal numbers
    are drawn, or a batch of your own (of token ids, say); for a network of several inputs a list of
    them. A function may return the network and its inputs, `return net, (images, ages)`; then give
    no `input`. Each draw is one forward and one backward pass in train mode, all parameters being
    trainable. The loss is the cross-entropy where the output has shape (B, K), against `labels` of
    shape (B,) if given, else random ones; otherwise ⟨v, z⟩ / B of the output z, with v standard
    normal. The losses of several outputs are added.

    The label says whether such networks train: see `examine.trainability`. `progress` is told the
    number of finished draws. Raises ValueError for an input that the model does not accept, and for
    a model without two weight layers behind each other.

    >>> blocks = [nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(20)]
    >>> check(nn.Sequential(*blocks), (64,)).outlook
    'unlikely to train'
    """
    _check_arguments(model, input, {"draws": draws, "batch_size": batch_size, "seed": seed})
    make = (lambda: _copied(model)) if isinstance(model, nn.Module) else model
    passes: list[_Pass] = []
    redrawn, example = False, None
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(cuda):
        for draw, one_seed in enumerate(_seeds(seed, draws)):
            torch.manual_seed(one_seed)
            example, batch = _made(make, input, batch_size)
            redrawn |= _draw_head_if_zero(example)
            passes.append(_pass_through(example, batch, labels, draw))
            if progress is not None:
                progress(draw + 1)
    assert example is not None
    trace = Trace.concat([one.trace for one in passes])
    main_path(trace)  # says so where there is no depth
    return InitialCheck(
        n_draws=draws,
        drawn=_drawn(model, input, labels),
        input_shape=passes[0].input_shape,
        loss=" and ".join(sorted({one.loss for one in passes})),
        has_zero_head=redrawn,
        paths=tuple(_along(path, trace) for path in paths(trace)),
        dead=_dead(trace),
        nonfinite=tuple(trace.nonfinite()),
        norm=norm_of(example),
        note=depth_note(trace),
    )


# -- measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pass:
    """One forward and one backward pass."""

    trace: Trace
    loss: str  # in words
    input_shape: tuple[int, ...]


def _pass_through(model: nn.Module, batch: Inputs, labels: Tensor | None, draw: int) -> _Pass:
    model.train()
    if any(is_lazy(parameter) for parameter in model.parameters()):
        with torch.no_grad():
            _called(model, batch)
    model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    with torch.enable_grad(), Recorder(model, None, measures=MEASURES, first_step=draw) as recorder:
        outputs = _outputs(_called(model, batch))
        losses = [_loss(output, labels) for output in outputs]
        sum(loss for loss, _ in losses).backward()  # type: ignore[union-attr]
        with recorder.around_step():
            pass  # no update: the weights stay as they were drawn
    first = first_floating_tensor(batch)
    shape = next((x.shape for x in batch if isinstance(x, Tensor)), first.shape if first is not None
                 else ())  # fmt: skip
    words = " and ".join(dict.fromkeys(words for _, words in losses))
    return _Pass(recorder.trace, words, tuple(shape))


def _called(model: nn.Module, batch: Inputs) -> Any:
    """What the model returns. Raises ValueError where it refuses the batch."""
    try:
        if len(batch) == 1 and isinstance(batch[0], Mapping):
            return model(**batch[0])
        return model(*batch)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(_refusal(model, batch, error)) from error


def _outputs(returned: Any) -> list[Tensor]:
    """The tensors that the loss is made of: those of a tuple, else the first that there is."""
    parts = returned if isinstance(returned, (tuple, list)) else ()
    found = [part for part in parts if isinstance(part, Tensor) and part.grad_fn is not None]
    if not found and (first := first_floating_tensor(returned)) is not None:
        found = [first]
    found = [one for one in found if one.grad_fn is not None and one.ndim > 0]
    if not found:
        raise ValueError(
            "Expected the model to return a tensor of floating numbers, one row for each input, "
            "that depends on its weights, but found none in what it returned. Give a model that "
            "returns one."
        )
    return found


def _refusal(model: nn.Module, batch: Inputs, error: Exception) -> str:
    tensors = [one for one in batch if isinstance(one, Tensor)]
    shape = " and ".join(",".join(map(str, one.shape[1:])) for one in tensors)
    n = len(tensors[0]) if tensors else 0
    message = str(error).strip().split("\n")[0].rstrip(".")
    text = f"The model does not accept input of shape {shape} in batches of {n}: {message}. "
    is_tokens = any(isinstance(module, nn.Embedding) for module in model.modules())
    if is_tokens and any(one.is_floating_point() for one in tensors):
        return text + (
            "It has an nn.Embedding: where it reads token ids, call `gradflow.check(model, ids)` "
            "from Python with a tensor of them, or check a function that returns `model, ids`."
        )
    return text + (
        "Give the shape of one input, such as --input 3,224,224 for images (C,H,W), and once for "
        "each of several inputs."
    )


def _loss(output: Tensor, labels: Tensor | None) -> tuple[Tensor, str]:
    """A loss for any output, and its name."""
    if output.dim() == 2 and output.shape[1] > 1 and not output.is_complex():
        if labels is not None:
            return F.cross_entropy(output, labels.to(output.device)), OWN_LABELS
        random = torch.randint(output.shape[1], (len(output),), device=output.device)
        return F.cross_entropy(output, random), CROSS_ENTROPY
    if labels is not None:
        raise ValueError(
            f"Expected an output of shape (B, K) for `labels`, but got {tuple(output.shape)}. "
            "Leave the labels out: a random linear function of the output is then the loss."
        )
    flat = output.flatten().abs() if output.is_complex() else output.flatten()
    return torch.randn_like(flat) @ flat / len(output), FUNCTIONAL


def _along(path: Sequence[Layer], trace: Trace) -> PathCheck:
    layers = body(path)
    outputs = [layer.output or "" for layer in layers]
    profiles = {"forward": Profile("rms(z)", "activation", columns(trace, "output_rms", outputs))}
    for name, size in GRADIENT_SIZES.items():
        values = layer_table(trace, name, layers).values
        profiles[name] = Profile(size.symbol, size.unit, values)
    bad = {one.first_step for one in trace.nonfinite()}
    last = [path[-1].output or ""]
    shares, rms = (columns(trace, name, last)[:, 0] for name in (DIFFERING.name, "output_rms"))
    prospects = tuple(
        Prospect(Rate(delta), float(share), float(size), int(step) not in bad)
        for step, delta, share, size in zip(
            trace.steps, profiles[TRANSPORT].per_draw, shares, rms, strict=True
        )
    )
    return PathCheck(tuple(layer.name for layer in layers), profiles, prospects)


def _dead(trace: Trace) -> dict[str, float]:
    """Activation -> mean over draws, of those that gave an exact 0 to a whole channel at all."""
    table = trace.select("output_dead_fraction", ["activation"])
    shares = np.nanmean(table.values, axis=0) if table.sites else np.zeros(0)
    return {site: float(share) for site, share in zip(table.sites, shares, strict=True)}


# -- making ------------------------------------------------------------------------------------


def _seeds(seed: int, draws: int) -> list[int]:
    """One for each draw: those of different `seed` share none, as seed + draw would."""
    return [int(one) for one in np.random.SeedSequence(seed).generate_state(draws, np.uint64)]


def _made(make: Callable[[], Made], input: Input, batch_size: int) -> tuple[nn.Module, Inputs]:
    """A network and its inputs: the user's, or standard normal numbers in its number format."""
    made = make()
    model, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"Expected a factory that returns an nn.Module, but it returned "
            f"{type(model).__name__}. Return the network itself, or the network and its inputs."
        )
    if any(p.layout != torch.strided for p in model.parameters()):
        raise ValueError("Expected a model with dense weights, but some are sparse.")
    if own is not None:
        return model, own if isinstance(own, tuple) else (own,)
    if input is None:
        raise ValueError(
            "Expected the shape of one input, such as (3, 224, 224), but got none. Give it, or a "
            "function that returns the network and its inputs."
        )
    floating = (p for p in model.parameters() if not is_lazy(p) and p.is_floating_point())
    like = next(floating, torch.zeros(()))
    return model, tuple(
        one.detach()
        if isinstance(one, Tensor)
        else torch.randn((batch_size, *one), dtype=like.dtype, device=like.device)
        for one in _each(input)
    )


def _each(input: Input) -> Sequence["tuple[int, ...] | Tensor"]:
    """One shape or batch for each input of the model."""
    if isinstance(input, Tensor) or not input or isinstance(input[0], int):
        return [input]  # type: ignore[list-item]
    return input  # type: ignore[return-value]


def _draw_head_if_zero(model: nn.Module) -> bool:
    """No gradient passes a last layer of zeros, with which ViT, for one, begins its first step."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    heads = [module for module in model.modules() if isinstance(module, kinds)][-1:]
    for head in heads:
        if not is_lazy(head.weight) and not head.weight.any():
            head.reset_parameters()
            return True
    return False


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"Expected a model that can be copied, since it must come back as it was, but got: "
            f"{error} Give a function that makes it: check(lambda: Net(), …)."
        ) from error


def _check_arguments(model: Model, input: Input, numbers: Mapping[str, int]) -> None:
    if not callable(model):
        raise ValueError(
            f"Expected a model or a function that makes one, but got {type(model).__name__}."
        )
    for one in [] if input is None else _each(input):
        is_shape = isinstance(one, tuple) and all(isinstance(n, int) and n > 0 for n in one)
        if not (isinstance(one, Tensor) or (is_shape and one)):
            raise ValueError(
                f"Expected `input` to be the shape of one input, such as (3, 224, 224), a batch as "
                f"a tensor, or a list of them, but got {input!r}."
            )
        if isinstance(one, tuple) and math.prod(one) * numbers["batch_size"] > MAX_ELEMENTS:
            raise ValueError(
                f"Expected `input`, the shape of one input, to give at most {MAX_ELEMENTS:,} "
                f"numbers in a batch, but got {shown(one)} in batches of {numbers['batch_size']}."
            )
    for name, number in numbers.items():
        low, high = LIMITS[name]
        if not low <= number <= high:
            raise ValueError(f"Expected `{name}` to be from {low} to {high}, but got {number}.")


def _drawn(model: Model, input: object, labels: Tensor | None) -> str:
    parts = [] if isinstance(model, nn.Module) else ["weights"]
    is_given = input is not None and all(isinstance(one, Tensor) for one in _each(input))  # type: ignore[arg-type]
    parts += [] if is_given else ["inputs"]
    parts += ["loss"] if labels is None else []
    if not parts:
        return "nothing but chance inside the network"
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]


def _list(numbers: np.ndarray) -> list[float | None]:
    return [plain(one) for one in numbers]
