"""Measures: what is recorded, each with its formula, unit and source.

A measure is a function of sums (sums.py), finished on the host in float64 over all recorded steps
and sites at once. z is an output, n its number of elements, w a parameter, g = ∂L/∂z or ∂L/∂w, and
Δw the change that the optimizer's step made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Of = Literal["output", "output gradient", "parameter"]
# By name, each of shape (steps, sites); NaN where it was not taken.
Table = Any  # np.ndarray, whose arithmetic has no precise type
Sums = Mapping[str, Table]

# What is read of a parameter in one recorded step, each only for a measure that needs it.
READS: dict[str, tuple[str, ...]] = {
    # the gradient, before the step
    "gradient": ("grad_square", "grad_nonfinite"),
    # weight and gradient, before the step; where it is taken, it holds the one above
    "step": ("weight_square", "grad_square", "grad_nonfinite", "grad_dot_weight", "filter_squares"),
    # weights after and before the step (a copy)
    "update": ("update_square", "changed"),
    # gradient and weights after and before the step
    "first order": ("grad_dot_update",),
    # weights and those at the start of the recording (a copy)
    "start": ("start_square", "travel_square"),
    # gradients of this and of the last recorded step (a copy)
    "last gradient": ("last_grad_square", "grad_dot_last"),
    # the state of Adam or AdamW
    "adam": ("adam_attenuation", "adam_step_square"),
    # gradients of every micro-batch (a copy)
    "micro-batches": ("n_micro", "micro_square", "micro_total_square"),
}


# The reads that are taken at every recorded step; what is dearer is taken at the full steps only.
CHEAP_READS = frozenset({"gradient", "last gradient"})


@dataclass(frozen=True)
class Measure:
    """What a number means, and how it is had.

    `of` says where it is taken: an output, its gradient, a parameter. A measure of the user's own
    has a `function`: of an output tensor, of its gradient, or of a parameter and its gradient. It
    returns a tensor of one number, is called under `no_grad`, and is averaged over the forward
    passes of a step::

        Measure("output_p99", "output", "99 % quantile of |z|", "activation",
                function=lambda z: z.abs().quantile(0.99))
    """

    name: str
    of: Of
    formula: str
    unit: str
    source: str = ""
    finish: Callable[[Sums], Table] | None = None
    read: str = "step"  # of a parameter: a key of READS
    function: "Callable[..., Tensor] | None" = None

    def __post_init__(self) -> None:
        if self.of not in ("output", "output gradient", "parameter"):
            raise ValueError(
                f"Expected a measure of an output, an output gradient or a parameter, "
                f"but {self.name!r} is of {self.of!r}."
            )
        if (self.finish is None) == (self.function is None):
            raise ValueError(
                f"Expected the measure {self.name!r} to have either `function`, of tensors, "
                "or `finish`, of sums."
            )

    def number(self, *tensors: "Tensor") -> "Tensor":
        """What the user's function says of these tensors, as a vector of one on their device."""
        assert self.function is not None
        import torch  # whoever calls this has it; whoever reads a trace need not wait for it

        with torch.no_grad():
            value = torch.as_tensor(self.function(*tensors), device=tensors[0].device)
        if value.numel() != 1:
            raise ValueError(
                f"Expected the function of the measure {self.name!r} to return one number, "
                f"but got a tensor of shape {tuple(value.shape)}."
            )
        return value.detach().reshape(1).double()


def _root(name: str) -> Callable[[Sums], Table]:
    return lambda sums: np.sqrt(sums[name])


def _plain(name: str) -> Callable[[Sums], Table]:
    return lambda sums: sums[name]


def _angle(sums: Sums) -> Table:
    """2 asin(½ ‖ŵ − ŵ₀‖) of the unit vectors: exact for small angles, where acos is not."""
    now, start = np.sqrt(sums["weight_square"]), np.sqrt(sums["start_square"])
    with np.errstate(divide="ignore", invalid="ignore"):
        chord_square = (sums["travel_square"] - (now - start) ** 2) / (now * start)
    angle = 2 * np.arcsin(np.sqrt(np.clip(chord_square, 0, 4)) / 2)
    return np.where(now * start > 0, angle, np.nan)  # a vector of zeros has no direction


def _cosine(sums: Sums) -> Table:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums["grad_dot_last"] / np.sqrt(sums["grad_square"] * sums["last_grad_square"])


def _noise(sums: Sums) -> Table:
    """Σᵢ‖hᵢ − h̄‖² / (K − 1), with hᵢ = K gᵢ where gᵢ is what micro-batch i adds to the gradient."""
    k = np.where(sums["n_micro"] > 1, sums["n_micro"], np.nan)
    return (k**2 * sums["micro_square"] - k * sums["micro_total_square"]) / (k - 1)


_MCCANDLISH = "McCandlish et al. 2018, arXiv:1812.06162, appendix A"
_INVARIANT = "Arora et al. 2019, arXiv:1812.03981"
_DEAD = "Lu et al. 2020, arXiv:1903.06733"

_ALL = (
    Measure("output_mean", "output", "Σz / n", "activation",
            finish=lambda s: s["sum"] / s["n"]),
    Measure("output_rms", "output", "√(Σz² / n)", "activation",
            finish=lambda s: np.sqrt(s["square"] / s["n"])),
    Measure("output_zero_fraction", "output", "share of elements with z = 0", "1",
            finish=lambda s: 1 - s["nonzero"] / s["n"]),
    Measure("output_dead_fraction", "output",
            "share of channels with z = 0 everywhere in the step", "1", _DEAD,
            finish=_plain("dead")),
    Measure("output_dead_window", "output",
            "share of channels with z = 0 everywhere in the last 16 full steps", "1", _DEAD,
            finish=_plain("dead_window")),
    Measure("output_max_abs", "output", "max |z|", "activation", finish=_plain("max_abs")),
    Measure("output_nonfinite", "output", "number of NaN and ±inf in z", "elements",
            finish=_plain("nonfinite")),
    Measure("output_grad_norm", "output gradient", "‖∂L/∂z‖₂", "loss / activation",
            finish=lambda s: np.sqrt(s["output_grad_square"])),
    Measure("output_grad_rms", "output gradient", "‖∂L/∂z‖₂ / √n", "loss / activation",
            finish=lambda s: np.sqrt(s["output_grad_square"] / s["n"])),
    Measure("output_grad_nonfinite", "output gradient", "number of NaN and ±inf", "elements",
            finish=_plain("output_grad_nonfinite")),
    Measure("weight_norm", "parameter", "‖w‖₂ before the step", "weight",
            finish=_root("weight_square")),
    Measure("grad_norm", "parameter", "‖∂L/∂w‖₂ as the optimizer receives it", "loss / weight",
            read="gradient", finish=_root("grad_square")),
    Measure("grad_nonfinite", "parameter", "number of NaN and ±inf in ∂L/∂w", "elements",
            read="gradient", finish=_plain("grad_nonfinite")),
    Measure("grad_dot_weight", "parameter", "⟨∂L/∂w, w⟩", "loss",
            finish=_plain("grad_dot_weight")),
    Measure("filter_grad_size", "parameter", "√(Σ over filters f of ‖g_f‖² ‖w_f‖²)", "loss",
            _INVARIANT, finish=_root("filter_squares")),
    Measure("update_norm", "parameter", "‖Δw‖₂", "weight", read="update",
            finish=_root("update_square")),
    Measure("update_changed_fraction", "parameter",
            "share of elements of w whose bits the step changes", "1", read="update",
            finish=lambda s: s["changed"] / s["size"]),
    Measure("grad_dot_update", "parameter", "⟨∂L/∂w, Δw⟩, the first-order change of L", "loss",
            read="first order", finish=_plain("grad_dot_update")),
    Measure("angle_from_start", "parameter",
            "angle between w and w when the recording began", "rad", read="start",
            finish=_angle),
    Measure("grad_cosine", "parameter",
            "cos of the angle between g and g of the last recorded step", "1",
            read="last gradient", finish=_cosine),
    Measure("adam_attenuation", "parameter", "mean of √v̂ / (√v̂ + ε) after the step", "1",
            "Wortsman et al. 2023, arXiv:2309.14322", read="adam",
            finish=lambda s: s["adam_attenuation"] / s["size"]),
    Measure("adam_update_rms", "parameter", "rms of m̂ / (√v̂ + ε) after the step", "1",
            "Kingma & Ba 2015, arXiv:1412.6980", read="adam",
            finish=lambda s: np.sqrt(s["adam_step_square"] / s["size"])),
    Measure("grad_noise", "parameter",
            "Σᵢ‖hᵢ − h̄‖² / (K − 1) over the K micro-batches' gradients h",
            "(loss / weight)²", _MCCANDLISH, read="micro-batches", finish=_noise),
    Measure("grad_signal", "parameter", "‖h̄‖² − grad_noise / K, unbiased for ‖E h‖²",
            "(loss / weight)²", _MCCANDLISH, read="micro-batches",
            finish=lambda s: s["micro_total_square"] - _noise(s) / s["n_micro"]),
)  # fmt: skip

MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}

# Recorded unless one chooses: what one read of outputs, of their gradients, of weights and their
# gradients before the step, and of weights after it gives.
PARAMETER_MEASURES: tuple[str, ...] = tuple(
    measure.name
    for measure in _ALL
    if measure.of == "parameter" and measure.read in ("gradient", "step", "update")
)
OUTPUT_MEASURES: tuple[str, ...] = tuple(
    measure.name for measure in _ALL if measure.of != "parameter"
)
DEFAULT_MEASURES: tuple[str, ...] = OUTPUT_MEASURES + PARAMETER_MEASURES


@dataclass(frozen=True)
class Derived:
    """A measure that is not stored but computed, on reading, from those that are."""

    name: str
    of: Of
    formula: str
    unit: str
    needs: tuple[str, ...]
    compute: Callable[..., Table]
    source: str = ""


def _held(table: Table) -> Table:
    """Each column goes on with its last value where it was not taken."""
    steps = np.arange(len(table))[:, np.newaxis]
    last = np.maximum.accumulate(np.where(np.isnan(table), 0, steps), axis=0)
    return np.take_along_axis(table, last, axis=0)


def _share(grad_dot_update: Table) -> Table:
    size = np.abs(grad_dot_update)
    return size / np.nansum(size, axis=1, keepdims=True)


DERIVED: dict[str, Derived] = {
    derived.name: derived
    for derived in (
        # A weight's norm changes by less than a hundredth from one full step to the next.
        Derived("scale_invariant_grad", "parameter", "‖g‖₂ ‖w‖₂, w at the last full step", "loss",
                ("grad_norm", "weight_norm"), lambda g, w: g * _held(w), _INVARIANT),
        Derived("relative_update", "parameter", "‖Δw‖₂ / ‖w‖₂", "1",
                ("update_norm", "weight_norm"), lambda d, w: d / w),
        Derived("loss_share", "parameter", "|⟨g, Δw⟩| / Σ over parameters of |⟨g, Δw⟩|", "1",
                ("grad_dot_update",), _share),
        Derived("grad_noise_scale", "parameter", "grad_noise / grad_signal", "micro-batches",
                ("grad_noise", "grad_signal"), lambda noise, signal: noise / signal, _MCCANDLISH),
        Derived("grad_snr", "parameter", "grad_signal / grad_noise", "1 / micro-batch",
                ("grad_noise", "grad_signal"), lambda noise, signal: signal / noise, _MCCANDLISH),
    )
}  # fmt: skip


def choose(measures: Sequence[str | Measure]) -> tuple[Measure, ...]:
    """The measures of these names, and the user's own as they are. Raises ValueError."""
    chosen = []
    for measure in measures:
        if isinstance(measure, Measure):
            chosen.append(measure)
        elif measure in MEASURES:
            chosen.append(MEASURES[measure])
        elif measure in DERIVED:
            needs = " and ".join(repr(name) for name in DERIVED[measure].needs)
            raise ValueError(
                f"Expected measures that are recorded, but {measure!r} is computed on reading. "
                f"Record {needs}; `trace.select({measure!r})` gives it."
            )
        else:
            raise ValueError(
                f"Expected measures of {', '.join(MEASURES)}, or a Measure of your own, "
                f"but got {measure!r}."
            )
    names = [measure.name for measure in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        what = f"got {', '.join(twice)} twice" if twice else "got none"
        raise ValueError(f"Expected every measure once, and at least one, but {what}.")
    return tuple(chosen)
