"""Closed forms: what gradients do per layer in a network at its start, without any network.

λ is the factor of the squared gradient norm from one layer to the one before it, towards the input.
"""

from math import acos, exp, pi, sqrt

import numpy as np
from scipy.special import digamma, expit
from scipy.stats import binom, norm

N_NODES = 101  # of the quadrature: the integrands are smooth, half of them would do
N_ROUNDS = 100  # to a fixed point that is left by less than a tenth in each


def expected_growth_linear(width: int) -> float:
    """λ = exp(E ln(χ²_n / n)) = exp(ψ(n/2)) · 2/n of a Gaussian linear layer of variance 1/n.

    The mean of the square is 1, but a slope of logarithms sees the mean of the logarithm, which
    lies 1/n below. From the χ² distribution of ‖Wᵀδ‖²/‖δ‖².
    """
    return exp(float(digamma(width / 2))) * 2 / width


def expected_growth_relu(width: int, gain: float) -> float:
    """λ = g² exp(E ln(2 χ²_K / n)), K ~ Binomial(n, ½), of a ReLU layer of variance 2 g² / n.

    About g² (1 − 5/(2n)). Hanin & Nica 2019, https://arxiv.org/abs/1812.05994
    """
    n_active = np.arange(1, width + 1)
    logs = np.log(4 / width) + digamma(n_active / 2)
    return gain**2 * exp(float(binom.pmf(n_active, width, 0.5) @ logs))


def expected_growth_bn_relu(batch_size: int) -> float:
    """λ of a wide network of linear layer, BatchNorm and ReLU: (d/2 + k − μ) / (μ (d − 2)).

    With d = B − 1 and ρ = −1/d, the correlation that any two inputs of the batch end up with;
    θ = arccos ρ; k = (π − θ) / 2π, the chance that both are active; and μ the variance of relu(z)
    over the batch, ½ − (√(1 − ρ²) + ρ (π − θ)) / 2π.

    Derived: a neuron's z is uniform on the sphere of radius √B in the d dimensions that sum to 0.
    A gradient of covariance p P, where P takes off the mean over the batch, goes through
    D = diag(relu′(z)) and BatchNorm's J = (P − zzᵀ/B) / s, with E[1/s²] = B / (μ (d − 2)) for
    weights of variance 1/n. λ is tr E[J D P D J] / d. B → ∞ gives π / (π − 1).
    Yang et al. 2019, https://arxiv.org/abs/1902.08129, eq. 25. Raises ValueError for B < 4.
    """
    d = _freedom(batch_size)
    angle = acos(-1 / d)
    both_active = (pi - angle) / (2 * pi)
    variance = 1 / 2 - (sqrt(1 - 1 / d**2) - (pi - angle) / d) / (2 * pi)
    return (d / 2 + both_active - variance) / (variance * (d - 2))


def expected_growth_bn_linear(batch_size: int) -> float:
    """λ = (B − 2) / (B − 3) of a wide network of linear layer and BatchNorm.

    Yang et al. 2019, https://arxiv.org/abs/1902.08129. Raises ValueError for B < 4.
    """
    d = _freedom(batch_size)
    return (d - 1) / (d - 2)


def expected_growth_bn_bias(beta: float) -> float:
    """λ = Φ(β) / Var[relu(z + β)], z ~ N(0, 1), where every BatchNorm has the bias β.

    E[relu′²] over the variance of what the next BatchNorm divides by, of a wide network and a large
    batch. With E[relu] = β Φ(β) + φ(β) and E[relu²] = (β² + 1) Φ(β) + β φ(β). A large β makes the
    ReLU linear, and λ 1; β = 0 gives π / (π − 1).

    >>> [round(expected_growth_bn_bias(beta), 3) for beta in (0, 0.5, 1, 2)]
    [1.467, 1.249, 1.12, 1.018]
    """
    active, density = float(norm.cdf(beta)), float(norm.pdf(beta))
    mean = beta * active + density
    return active / ((beta**2 + 1) * active + beta * density - mean**2)


def expected_growth_bn_leaky(slope: float) -> float:
    """λ = 1 / (1 − (1 − a)² / (π (1 + a²))) of linear layer, BatchNorm and leaky ReLU of slope a.

    E[φ′²] / Var[φ(z)], z ~ N(0, 1), of a wide network and a large batch: E[φ′²] = E[φ²] =
    (1 + a²) / 2 and E[φ] = (1 − a) / √(2π).

    >>> [round(expected_growth_bn_leaky(slope), 3) for slope in (0, 0.01, 0.2, 0.5, 1)]
    [1.467, 1.453, 1.244, 1.068, 1.0]
    """
    return 1 / (1 - (1 - slope) ** 2 / (pi * (1 + slope**2)))


def _freedom(batch_size: int) -> int:
    if batch_size < 4:
        raise ValueError(
            f"Expected a batch of at least 4, but got {batch_size}. In smaller ones the mean of "
            "BatchNorm's 1/σ² is infinite, and so is the growth."
        )
    return batch_size - 1


def sigmoid_rate(weight_variance: float, bias_variance: float = 0.0) -> float:
    """√χ = √(σ_w² E[φ′(z)²]): the factor of the gradient norm per layer of a wide sigmoid network.

    `weight_variance` is that of a weight times n. z ~ N(0, q), where q = σ_w² E[φ(z)²] + σ_b² is
    the fixed point; Gauss–Hermite quadrature.
    Schoenholz et al. 2017, https://arxiv.org/abs/1611.01232

    >>> round(sigmoid_rate(1.0), 3), round(sigmoid_rate(1 / 3), 3)
    (0.236, 0.141)
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    weights = weights / weights.sum()
    q = 1.0
    for _ in range(N_ROUNDS):
        q = weight_variance * float(weights @ expit(sqrt(q) * nodes) ** 2) + bias_variance
    slopes = expit(sqrt(q) * nodes) * expit(-sqrt(q) * nodes)
    return sqrt(weight_variance * float(weights @ slopes**2))
