"""BatchNorm: are its running statistics those of the images, and what do they cost?"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, whose BatchNorm normalises by the batch at hand.

    As in training, without updating anything. Give it shuffled batches of the size that training
    had: batches of one class say something else.
    """
    model = copy.deepcopy(model).eval()
    for norm in _tracking(model).values():
        # Without running statistics BatchNorm uses the batch's in eval mode too.
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        norm.track_running_stats = False
    return model


@torch.no_grad()
def recalibrated(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of `model` in eval mode, whose BatchNorm has the population statistics of `batches`.

    With n_b values per channel (images × positions) in batch b of images (B, …), their mean m_b
    and biased variance v_b::

        mean     = Σ n_b m_b / Σ n_b
        variance = Σ n_b (v_b + m_b²) / Σ n_b − mean²

    so that a smaller last batch counts for what it is. The layers before it normalise by their
    batch, as in training, and everything else is in eval mode. PreciseBN: Wu & Johnson 2021,
    https://arxiv.org/abs/2105.07576; pooled as by fvcore's `_PopulationVarianceEstimator`.

    A BatchNorm that keeps no running statistics stays as it is. Raises ValueError without batches.
    """
    model = copy.deepcopy(model).eval()
    norms = _tracking(model).values()
    if not norms:
        return model
    pools = [(norm, _Pool()) for norm in norms]
    handles = [norm.register_forward_pre_hook(pool.add) for norm, pool in pools]
    n_batches = 0
    try:
        for norm in norms:
            norm.train().track_running_stats = False  # normalises by the batch, updates nothing
        for images in batches:
            model(images)
            n_batches += 1
    finally:
        for handle in handles:
            handle.remove()
    if not n_batches:
        raise ValueError("Expected batches for the statistics, but got none.")
    for norm, pool in pools:
        norm.eval().track_running_stats = True
        pool.write(norm)
    return model


def divergence(model: nn.Module, recalibrated_model: nn.Module) -> dict[str, float]:
    """How far the running statistics r of each BatchNorm are from the population's p, in nats.

    The divergence of two normal distributions, mean over channels, with s² = variance + eps::

        D = ln(s_p / s_r) + (s_r² + (m_r − m_p)²) / (2 s_p²) − 1/2

    which is KL(r ‖ p) ≥ 0; a mean that is off by d standard deviations gives d²/2. `model` has the
    running statistics, `recalibrated_model` those of the population. By name of the layer.
    """
    running, population = _tracking(model), _tracking(recalibrated_model)
    if running.keys() != population.keys():
        raise ValueError(
            f"Expected the same BatchNorm layers in both models, but got {[*running]} and "
            f"{[*population]}. Give a model and its copy from `recalibrated`."
        )
    return {name: _divergence(norm, population[name]) for name, norm in running.items()}


def _divergence(running: _BatchNorm, population: _BatchNorm) -> float:
    mean_r, var_r = _statistics(running)
    mean_p, var_p = _statistics(population)
    squares = (var_r + (mean_r - mean_p).square()) / (2 * var_p)
    return float(((var_p / var_r).log() / 2 + squares - 0.5).mean())


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) by which it normalises: eps keeps a constant channel finite."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.double(), norm.running_var.double() + norm.eps


def _tracking(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that evaluate with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@dataclass
class _Pool:
    """Sums over batches of what one BatchNorm is given; float64, since squares are subtracted."""

    n: int = 0  # values per channel
    mean: Tensor | float = 0.0  # Σ n_b m_b, (C,)
    square: Tensor | float = 0.0  # Σ n_b (v_b + m_b²), (C,)

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        given: Tensor = args[0]
        dims = [dim for dim in range(given.dim()) if dim != 1]
        variance, mean = torch.var_mean(given, dims, correction=0)
        n = given.numel() // given.shape[1]
        self.n += n
        self.mean = self.mean + n * mean.double()
        self.square = self.square + n * (variance.double() + mean.double().square())

    def write(self, norm: _BatchNorm) -> None:
        if not self.n:
            return  # the model did not call this layer
        mean, square = torch.as_tensor(self.mean / self.n), torch.as_tensor(self.square / self.n)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((square - mean.square()).clamp_min(0))
