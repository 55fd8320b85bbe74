"""How deep a network can be trained, predicted from the growth of its gradient at the start."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

# Depth scales after which training fails. Both are rules of thumb, read off experiments.
SCALES_WITHOUT_NORM = 6  # Schoenholz et al. 2017, https://arxiv.org/abs/1611.01232; from memory
SCALES_WITH_BATCHNORM = 16  # Yang et al. 2019, https://arxiv.org/abs/1902.08129

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class Trainability:
    """The depth scale ξ = 1 / abs(ln λ) of a network, and the depth that it allows.

    λ is the factor of ‖∂L/∂z‖² per layer towards the input. Over ξ layers the squared gradient
    changes by a factor e. No rule is given (`n_scales` None) where none is known to hold.
    """

    growth: float  # λ
    depth: int  # weight layers of the network
    n_scales: int | None  # so many depth scales can be trained
    no_rule: str = ""  # why there is none

    @property
    def depth_scale(self) -> float:
        """ξ in layers; inf where the gradient keeps its size, NaN where λ is not known."""
        if not (math.isfinite(self.growth) and self.growth > 0):
            return math.nan
        rate = abs(math.log(self.growth))
        return 1 / rate if rate > 0 else math.inf

    @property
    def max_depth(self) -> float | None:
        """In layers; None where there is no rule or λ is not known."""
        if self.n_scales is None or math.isnan(self.depth_scale):
            return None
        return self.n_scales * self.depth_scale

    @property
    def is_trainable(self) -> bool | None:
        return None if self.max_depth is None else self.depth <= self.max_depth

    def sentence(self) -> str:
        if self.max_depth is None:
            why = self.no_rule or "the rate is not known."
            return f"Trainable depth: no prediction, {why}"
        rule = (
            f"{self.n_scales} ξ, a rule of thumb of Yang et al. 2019 for BatchNorm"
            if self.n_scales == SCALES_WITH_BATCHNORM
            else f"{self.n_scales} ξ, a rule of thumb of Schoenholz et al. 2017 without norms"
        )
        layers = f"{self.depth} weight layers: predicted "
        layers += "trainable" if self.is_trainable else "too deep to train from here"
        return (
            f"Trainable depth: about {_count(self.max_depth)} layers ({rule}; depth scale ξ = "
            f"1/|ln λ| = {_count(self.depth_scale)} layers at λ = {self.growth:.3g}). This network "
            f"has {layers}."
        )

    def to_json(self) -> dict[str, float | int | str | bool | None]:
        """Plain types; None stands for inf, NaN and "no rule"."""
        return {
            "growth_per_layer": _plain(self.growth),
            "depth_scale_layers": _plain(self.depth_scale),
            "n_scales": self.n_scales,
            "max_depth_layers": _plain(self.max_depth),
            "depth_layers": self.depth,
            "is_trainable": self.is_trainable,
            "sentence": self.sentence(),
        }


def predict(model: nn.Module, growth: float, depth: int, *, has_joins: bool) -> Trainability:
    """What the theory of deep networks at their start says of one with this λ and depth."""
    modules = list(model.modules())
    if has_joins:
        why = (
            "since this network has skip connections or parallel branches. There the gradient "
            "grows or shrinks more slowly than by a constant factor per layer, and the rules for "
            "plain networks do not hold."
        )
        return Trainability(growth, depth, None, why)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        return Trainability(growth, depth, SCALES_WITH_BATCHNORM)
    if any(isinstance(module, _NORMS) for module in modules):
        why = "since no rule is known for its kind of normalisation."
        return Trainability(growth, depth, None, why)
    return Trainability(growth, depth, SCALES_WITHOUT_NORM)


def has_joins(output: Tensor) -> bool:
    """Whether two ways through the network meet again on the way to `output`.

    Read off the autograd graph: a sum or a concatenation of two tensors that were both computed, as
    in a skip connection. A bias or a class token is a parameter and does not count.
    """
    seen, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        before = [one for one, _ in node.next_functions if one is not None]
        computed = [one for one in before if one.name() != "torch::autograd::AccumulateGrad"]
        if node.name() in ("AddBackward0", "CatBackward0") and len(computed) > 1:
            return True
        todo += computed
    return False


def _count(layers: float) -> str:
    return (
        "more than 10,000"
        if layers > 10_000
        else f"{layers:.2g}"
        if layers < 10
        else f"{layers:.0f}"
    )


def _plain(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
