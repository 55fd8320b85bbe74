"""The learning rate by epoch, as a share of `lr`, in closed form."""

import math
from dataclasses import replace

from gradflow.training.config import TrainConfig


def lr_factors(config: TrainConfig) -> list[float]:
    """(epochs,): what `lr` is multiplied by in each epoch.

    With w epochs of warm-up, epoch t has (t + 1) / (w + 1) before epoch w. Then the schedule
    begins at its first epoch, s = t − w, out of S = epochs − w::

        step      gamma^⌊s / step_size⌋
        cosine    (1 + cos(π s / S)) / 2
        constant  1

    With `lr_sum` "step", all are multiplied by Σ step / Σ own, where Σ step is the sum of the step
    schedule without warm-up over as many epochs.

    >>> lr_factors(TrainConfig(epochs=4, schedule="constant", warmup=1))
    [0.5, 1.0, 1.0, 1.0]
    >>> lr_factors(TrainConfig(epochs=4, schedule="constant", lr_sum="step", step_size=2))
    [0.55, 0.55, 0.55, 0.55]
    """
    factors = [_factor(config, epoch) for epoch in range(config.epochs)]
    if config.lr_sum == "own":
        return factors
    reference = replace(config, schedule="step", warmup=0, lr_sum="own")
    scale = math.fsum(lr_factors(reference)) / math.fsum(factors)
    return [scale * factor for factor in factors]


def _factor(config: TrainConfig, epoch: int) -> float:
    if epoch < config.warmup:
        return (epoch + 1) / (config.warmup + 1)
    place, length = epoch - config.warmup, config.epochs - config.warmup
    if config.schedule == "step":
        return float(config.gamma ** (place // config.step_size))
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * place / length)) / 2
    return 1.0
