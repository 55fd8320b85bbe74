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

from gradflow.analysis import thresholds
from gradflow.analysis.layers import Layer, body, main_path
from gradflow.analysis.profile import GRADIENT_SIZES, columns, layer_table
from gradflow.analysis.rates import Label, Rate, slopes
from gradflow.analysis.statistics import Interval, t_interval
from gradflow.examine.trainability import Trainability, has_joins, predict
from gradflow.record import NonFinite, Recorder, Trace
from gradflow.record.sites import first_floating_tensor
from gradflow.typed import shown

Model = nn.Module | Callable[[], nn.Module]

# No update is made, so nothing of it is read.
MEASURES = (
    "output_rms", "output_dead_fraction", "output_nonfinite", "output_grad_norm",
    "output_grad_nonfinite", "weight_norm", "grad_norm", "grad_nonfinite",
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
    rate: Interval  # decades per layer, one number per draw; of gradients towards the input,
    # of the signal towards the output

    @property
    def median(self) -> np.ndarray:
        """(layers,): over the draws; NaN where nothing finite was measured."""
        finite = [column[np.isfinite(column)] for column in self.per_draw.T]
        return np.array([np.median(column) if len(column) else np.nan for column in finite])

    @property
    def overall(self) -> Rate:
        """The mean rate, with what it comes to over the whole depth."""
        return Rate(self.rate.mean, self.per_draw.shape[1])

    @property
    def label(self) -> Label:
        return self.overall.label

    @property
    def is_certain(self) -> bool:
        """Whether both ends of the interval bear the label; False for a single draw."""
        n_layers = self.per_draw.shape[1]
        ends = {Rate(end, n_layers).label for end in (self.rate.low, self.rate.high)}
        return ends == {self.label} and self.label != "unknown"

    def to_json(self) -> dict[str, Any]:
        return {
            "symbol": self.symbol,
            "unit": self.unit,
            "median": _plain(self.median),
            "per_draw": _plain(self.per_draw),
        }


@dataclass(frozen=True)
class InitialCheck:
    """What one forward and one backward pass show, before any training.

    `profiles` holds "forward", the rms of each layer's output z, and the sizes of the gradient that
    `GRADIENT_SIZES` defines, of the weight layers from the first to the last but the classifier.
    Where a norm follows right behind a layer, z is the norm's output, which it sets to about 1.
    """

    n_draws: int
    drawn: str  # what differs from draw to draw
    input_shape: tuple[int, ...]  # with the batch
    loss: str
    has_zero_head: bool  # the last layer starts at zero; it was drawn at random to measure
    layers: tuple[str, ...]
    profiles: dict[str, Profile]
    dead: dict[str, float]  # activation -> share of channels that are 0 for the whole batch
    nonfinite: tuple[NonFinite, ...]  # the first place first; `first_step` is the draw
    trainability: Trainability

    @property
    def label(self) -> Label:
        """Of δ: whether the gradient is transported from the output to the input."""
        return self.profiles[TRANSPORT].label

    @property
    def rates(self) -> dict[str, Interval]:
        """Decades per layer towards the input, by gradient size."""
        return {name: self.profiles[name].rate for name in GRADIENT_SIZES}

    @property
    def forward_rate(self) -> Interval:
        """Decades per layer by which the signal grows towards the output."""
        return self.profiles["forward"].rate

    @property
    def without_gradient(self) -> tuple[str, ...]:
        """The layers whose δ was exactly 0, or too small for the number format, in every draw."""
        is_zero = (self.profiles[TRANSPORT].per_draw == 0).all(axis=0)
        return tuple(layer for layer, zero in zip(self.layers, is_zero, strict=True) if zero)

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def sentences(self) -> list[str]:
        """The result in words, the answer first."""
        said = [_answer(self.label, self.profiles[TRANSPORT], self.n_draws)]
        said += _warnings(self)
        said.append(self.trainability.sentence())
        return [*said, *_caveats(self)]

    def to_json(self) -> dict[str, Any]:
        """Plain types; None stands for inf and NaN."""
        return {
            "label": self.label,
            "is_certain": self.profiles[TRANSPORT].is_certain,
            "n_draws": self.n_draws,
            "drawn": self.drawn,
            "input_shape": list(self.input_shape),
            "loss": self.loss,
            "has_zero_head": self.has_zero_head,
            "layers": list(self.layers),
            "profiles": {name: profile.to_json() for name, profile in self.profiles.items()},
            "rates": {name: _rate_to_json(name, p) for name, p in self.profiles.items()},
            "trainability": self.trainability.to_json(),
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
    input: tuple[int, ...] | Tensor,
    *,
    draws: int = 5,
    batch_size: int = 8,
    labels: Tensor | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> InitialCheck:
    """Signal forward and gradient backward at the initialisation, without any training.

    Give a function that makes the network, `lambda: Net(10)`, and every draw starts from fresh
    weights: then the intervals tell how much the luck of the initialisation counts. A network that
    is there already is one draw of the weights, and only input and labels are drawn anew; it is
    measured in copies, so that neither it nor the random numbers of torch change by a bit.

    `input` is the shape of one input, `(3, 224, 224)`, of which batches of standard normal numbers
    are drawn, or a batch of your own (of token ids, say). Each draw is one forward and one backward
    pass in train mode, all parameters being trainable. The loss is the cross-entropy where the
    output has shape (B, K), against `labels` of shape (B,) if given, else random ones; otherwise
    ⟨v, z⟩ / B of the first floating tensor z of the output, with v standard normal.

    `progress` is told the number of finished draws. Raises ValueError for an input that the model
    does not accept, and for a model without two weight layers.

    >>> blocks = [nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(5)]
    >>> check(nn.Sequential(*blocks), (64,)).label
    'vanishing'
    """
    _check_arguments(model, input, {"draws": draws, "batch_size": batch_size, "seed": seed})
    make = (lambda: _copied(model)) if isinstance(model, nn.Module) else model
    traces, losses, joins, redrawn, example = [], set(), False, False, None
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(cuda):
        for draw, one_seed in enumerate(_seeds(seed, draws)):
            torch.manual_seed(one_seed)
            example = _made(make)
            redrawn |= _draw_head_if_zero(example)
            trace, loss, joined = _pass_through(example, input, batch_size, labels, draw)
            traces.append(trace)
            losses.add(loss)
            joins |= joined
            if progress is not None:
                progress(draw + 1)
    assert example is not None
    trace = Trace.concat(traces)
    path = main_path(trace)
    profiles = _profiles(trace, body(path))
    growth = profiles[TRANSPORT].overall.growth
    shape = tuple(input.shape) if isinstance(input, Tensor) else (batch_size, *input)
    return InitialCheck(
        n_draws=draws,
        drawn=_drawn(model, input, labels),
        input_shape=shape,
        loss=" and ".join(sorted(losses)),
        has_zero_head=redrawn,
        layers=tuple(layer.name for layer in body(path)),
        profiles=profiles,
        dead=_dead(trace),
        nonfinite=tuple(trace.nonfinite()),
        trainability=predict(example, growth, len(path), has_joins=joins),
    )


# -- measuring ---------------------------------------------------------------------------------


def _pass_through(
    model: nn.Module, input: tuple[int, ...] | Tensor, batch_size: int, labels: Tensor | None,
    draw: int,
) -> tuple[Trace, str, bool]:  # fmt: skip
    """One forward and one backward pass: its record, the loss in words, whether there are joins."""
    model.train().zero_grad()
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        with torch.no_grad():
            model(_batch(model, input, batch_size))  # lazy layers take their size from an input
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    with torch.enable_grad(), Recorder(model, None, measures=MEASURES, first_step=draw) as recorder:
        output = _output(model, _batch(model, input, batch_size))
        loss, words = _loss(output, labels)
        joined = has_joins(output)
        loss.backward()  # type: ignore[no-untyped-call]
        with recorder.around_step():
            pass  # no update: the weights stay as they were drawn
    return recorder.trace, words, joined


def _batch(model: nn.Module, input: tuple[int, ...] | Tensor, batch_size: int) -> Tensor:
    """The user's batch, or standard normal numbers in the number format of the model."""
    if isinstance(input, Tensor):
        return input.detach()
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.randn((batch_size, *input), dtype=like.dtype, device=like.device)


def _output(model: nn.Module, batch: Tensor) -> Tensor:
    """The first floating tensor that the model returns. Raises ValueError where it refuses."""
    try:
        output = first_floating_tensor(model(batch))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(_refusal(model, batch, error)) from error
    if output is None or output.grad_fn is None or output.ndim == 0:
        raise ValueError(
            "Expected the model to return a tensor of floating numbers, one row for each input, "
            "that depends on its weights, but found none in what it returned. Give a model that "
            "returns one."
        )
    return output


def _refusal(model: nn.Module, batch: Tensor, error: Exception) -> str:
    shape = ",".join(map(str, batch.shape[1:]))
    message = str(error).strip().split("\n")[0].rstrip(".")
    text = (
        f"The model does not accept input of shape {shape} in batches of {len(batch)}: {message}. "
    )
    is_tokens = any(isinstance(module, nn.Embedding) for module in model.modules())
    if is_tokens and batch.is_floating_point():
        return text + (
            "It has an nn.Embedding: where it reads token ids, call `gradflow.check(model, ids)` "
            "from Python with a tensor of them."
        )
    return text + "Give the shape of one input, such as --input 3,224,224 for images (C,H,W)."


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


def _profiles(trace: Trace, layers: Sequence[Layer]) -> dict[str, Profile]:
    stages = [layer.stage for layer in layers]
    signal = columns(trace, "output_rms", [layer.output or "" for layer in layers])
    # Slopes count towards the input, the signal goes the other way.
    forward = Profile("rms(z)", "activation", signal, t_interval(-slopes(signal, stages)))
    found = {"forward": forward}
    for name, size in GRADIENT_SIZES.items():
        values = layer_table(trace, name, layers).values
        found[name] = Profile(size.symbol, size.unit, values, t_interval(slopes(values, stages)))
    return found


def _dead(trace: Trace) -> dict[str, float]:
    """Activation -> mean over draws, of those that gave an exact 0 to a whole channel at all."""
    table = trace.select("output_dead_fraction", ["activation"])
    shares = np.nanmean(table.values, axis=0) if table.sites else np.zeros(0)
    return {site: float(share) for site, share in zip(table.sites, shares, strict=True)}


# -- making ------------------------------------------------------------------------------------


def _seeds(seed: int, draws: int) -> list[int]:
    """One for each draw: those of different `seed` share none, as seed + draw would."""
    return [int(one) for one in np.random.SeedSequence(seed).generate_state(draws, np.uint64)]


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    model = make()
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"Expected a factory that returns an nn.Module, but it returned "
            f"{type(model).__name__}. Return the network itself."
        )
    if any(p.layout != torch.strided for p in model.parameters()):
        raise ValueError("Expected a model with dense weights, but some are sparse.")
    return model


def _draw_head_if_zero(model: nn.Module) -> bool:
    """No gradient passes a last layer of zeros, with which ViT, for one, begins its first step."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    heads = [module for module in model.modules() if isinstance(module, kinds)][-1:]
    for head in heads:
        is_lazy = isinstance(head.weight, nn.UninitializedParameter)
        if not is_lazy and not head.weight.any():
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


def _check_arguments(model: Model, input: object, numbers: Mapping[str, int]) -> None:
    if not callable(model):
        raise ValueError(
            f"Expected a model or a function that makes one, but got {type(model).__name__}."
        )
    is_shape = isinstance(input, tuple) and all(isinstance(n, int) and n > 0 for n in input)
    if not (isinstance(input, Tensor) or (is_shape and input)):
        raise ValueError(
            f"Expected `input` to be the shape of one input, such as (3, 224, 224), or a batch as "
            f"a tensor, but got {input!r}."
        )
    for name, number in numbers.items():
        low, high = LIMITS[name]
        if not low <= number <= high:
            raise ValueError(f"Expected `{name}` to be from {low} to {high}, but got {number}.")
    if isinstance(input, tuple) and math.prod(input) * numbers["batch_size"] > MAX_ELEMENTS:
        raise ValueError(
            f"Expected `input`, the shape of one input, to give at most {MAX_ELEMENTS:,} numbers "
            f"in a batch, but got {shown(input)} in batches of {numbers['batch_size']}."
        )


def _drawn(model: Model, input: object, labels: Tensor | None) -> str:
    parts = [] if isinstance(model, nn.Module) else ["weights"]
    parts += [] if isinstance(input, Tensor) else ["inputs"]
    parts += ["loss"] if labels is None else []
    if not parts:
        return "nothing but chance inside the network"
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]


# -- saying ------------------------------------------------------------------------------------


def _answer(label: Label, profile: Profile, n_draws: int) -> str:
    if label == "unknown":
        return "Unknown at the start: the gradient could not be measured at two layers or more."
    per_layer = 10 ** abs(profile.rate.mean)
    way = "smaller" if profile.rate.mean < 0 else "larger"
    words = (
        f"{label.capitalize()} at the start: towards the input the gradient δ becomes "
        f"{per_layer:.3g} times {way} with each layer, {_power(abs(profile.overall.decades))} "
        f"times over the {profile.per_draw.shape[1]} layers of the profile"
    )
    line = f" (healthy: at most {10 ** float(thresholds.VANISHING_DECADES):.0f} times either way)."
    if n_draws > 1 and not profile.is_certain:
        line += " This is not certain: the interval reaches beyond the line. Take more draws."
    return words + line


def _warnings(found: InitialCheck) -> list[str]:
    said = []
    if found.nonfinite:
        first = found.nonfinite[0]
        sites = len({one.site for one in found.nonfinite})
        said.append(
            f"NaN or inf at {sites} places, the first at {first.site} ({first.measure}, "
            f"{first.count} elements): look there first, the other numbers mean little."
        )
    if found.has_zero_head:
        said.append(
            "The last layer starts at zero, as in some designs, and lets no gradient pass in the "
            "first step. Here it was drawn at random, to see what comes once it has moved."
        )
    if found.without_gradient:
        first_layer, n = found.without_gradient[0], len(found.without_gradient)
        said.append(
            f"No gradient at all at {n} of {len(found.layers)} layers, from {first_layer} on: it "
            "is exactly 0, or too small for the number format. While that lasts they do not learn."
        )
    if max(found.dead.values(), default=0) > 0:
        worst = max(found.dead, key=found.dead.__getitem__)
        said.append(
            f"Dead channels (0 for the whole batch): {np.mean(list(found.dead.values())):.1%} on "
            f"average over the activations, at most {found.dead[worst]:.1%}, at {worst}."
        )
    return said


def _caveats(found: InitialCheck) -> list[str]:
    return [
        "This is the state at the start only; the first steps of training can change it. δ says "
        "how much gradient is passed on from layer to layer, ŝ what a small relative change of a "
        "weight does to the loss. They answer different questions and may disagree.",
        _interval_note(found),
        f"Loss: {found.loss}.",
    ]


def _interval_note(found: InitialCheck) -> str:
    if found.n_draws == 1:
        return "A single draw: there is no interval, and the luck of the draw is not known."
    level = f"{100 * float(thresholds.CONFIDENCE):.0f} %"
    note = f"Intervals: {level} over {found.n_draws} draws of {found.drawn}."
    if "weights" not in found.drawn:
        note += " The weights are one draw: give a function that makes the model to draw them too."
    return note


def _power(decades: float) -> str:
    if decades >= 4:
        return f"10^{decades:.0f}"
    return f"{10**decades:.3g}" if decades < 3 else f"{10**decades:,.0f}"


def _rate_to_json(name: str, profile: Profile) -> dict[str, Any]:
    interval = profile.rate
    is_forward = name == "forward"
    return {
        "unit": "decades per layer",
        "towards": "output" if is_forward else "input",
        "mean": _plain(interval.mean),
        "low": _plain(interval.low),
        "high": _plain(interval.high),
        "sd": _plain(interval.sd),
        "n": interval.n,
        "decades_over_depth": _plain(profile.overall.decades),
        **({} if is_forward else {"label": profile.label}),
    }


def _plain(numbers: Any) -> Any:
    """Numbers and nested arrays of them, None for what JSON cannot say."""
    if isinstance(numbers, np.ndarray):
        return [_plain(one) for one in numbers]
    return float(numbers) if math.isfinite(numbers) else None
