"""Rank: how many directions do the features of a layer span, and what can be read from them?"""

from collections.abc import Iterable
from math import nan

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from gradflow.examine.activations import watch_activations

N_FOLDS = 5
FOLD_SEED = 0
# Of standardised features, whose squares sum to n images. At the 700 images and 512 features of a
# small data set, a classifier with little penalty would fit the noise of a wide layer, and its
# accuracy would fall with width and not with what the features hold.
ALPHA = 100.0


def features(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """(images, channels) float64 of each activation: its output's mean over all positions.

    After the activation, because that is what the next layer is given: in a residual network it
    holds the skip connection, which the output of a convolution lacks. In eval mode; by site, in
    the order of the forward pass, see `watch_activations`. Channels are dimension 1.
    """
    seen: dict[str, list[Tensor]] = {}

    def see(site: str, output: Tensor) -> None:
        means = output.flatten(2).mean(2) if output.dim() > 2 else output.clone()
        seen.setdefault(site, []).append(means.cpu())

    watch_activations(model, batches, see)
    return {site: torch.cat(means).double().numpy() for site, means in seen.items()}


def effective_rank(features: np.ndarray) -> float:
    """exp(−Σ p ln p) with p = σ² / Σσ², of the centred matrix (images, channels). No unit.

    From 1 (all variance in one direction) to the number of channels (equal in all). The entropy is
    that of the variances; Roy & Vetterli 2007, "The effective rank", take the singular values σ
    themselves, which weighs small directions more. NaN where nothing varies, or is not finite.

    >>> round(effective_rank(np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])), 6)
    2.0
    """
    variances = _variances(features)
    if not variances.sum() > 0:
        return nan
    shares = variances / variances.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(features: np.ndarray) -> float:
    """‖H‖_F² / ‖H‖₂², of the centred matrix H (images, channels): Σσ² / max σ². No unit.

    At most the rank, and deaf to small directions. NaN where nothing varies, or is not finite.
    Rudelson & Vershynin 2007, https://arxiv.org/abs/math/0503442
    """
    variances = _variances(features)
    return float(variances.sum() / variances.max()) if variances.sum() > 0 else nan


def probe_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy, in [0, 1], of a linear classifier of `labels` (images,) on images it has not seen.

    Ridge regression on standardised features with a fixed penalty, in five stratified folds whose
    shuffle is fixed: the same features have the same accuracy. NaN with fewer than two classes,
    with fewer than five images in one of them, or with features that are not finite.
    Alain & Bengio 2016, https://arxiv.org/abs/1610.01644
    """
    if len(features) != len(labels):
        raise ValueError(
            f"Expected one label for each image, but got {len(labels)} for {len(features)}."
        )
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < N_FOLDS or not np.isfinite(features).all():
        return nan
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=ALPHA))
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=FOLD_SEED)
    return float(cross_val_score(probe, features, labels, cv=folds).mean())


def _variances(features: np.ndarray) -> np.ndarray:
    """Squared singular values of the centred matrix; zeros where it cannot be decomposed."""
    if features.ndim != 2 or not len(features):
        raise ValueError(
            f"Expected features of shape (images, channels), but got {features.shape}."
        )
    if not np.isfinite(features).all():
        return np.zeros(1)
    centred = features - features.mean(axis=0)
    return np.asarray(np.linalg.svd(centred, compute_uv=False) ** 2)
