"""Does a map mean anything? Four checks, each with a threshold, before anyone believes a picture.

With `methods`, the only module that uses Captum.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from captum.metrics import infidelity, sensitivity_max
from scipy.stats import rankdata
from torch import Tensor, nn

from gradflow import nets
from gradflow.analysis.thresholds import Threshold
from gradflow.present.saliency.attribution import inspecting, predict_all
from gradflow.present.saliency.methods import METHODS, Method, per_batch, seeded
from gradflow.typed import to_json

SEEDS = (1001, 1002, 1003)  # of the networks that know nothing; no training seed is as large
N_SQUARES = 16  # perturbations of an image for the infidelity, as many for its scale
SQUARE = 1 / 4  # side of a removed square, of the image's: a part of a dish, not a pixel
N_NOISY = 3  # noisy copies of an image for the sensitivity
NOISE_RADIUS = 0.1  # normalised units: 6 grey levels of 255, which a person hardly sees
N_STEPS = 10  # of a deletion or insertion curve

TRUST_THRESHOLDS = {
    threshold.name: threshold
    for threshold in (
        Threshold(
            "randomisation",
            0.5,
            "rank correlation",
            "a map that shares more than a quarter of its ranks' variance (ρ²) with the map of a "
            "network that has learned nothing shows the picture rather than the network",
            "check: Adebayo et al. 2018, arXiv:1810.03292; number: gradflow's own choice",
        ),
        Threshold(
            "infidelity",
            0.9,
            "share",
            "a map that explains less than a tenth of what the logit does when squares are "
            "removed; a random map explains about 1 / 16 with 16 squares",
            "check: Yeh et al. 2019, arXiv:1901.09392; number: gradflow's own choice",
        ),
        Threshold(
            "sensitivity",
            1.0,
            "share",
            "noise that a person hardly sees changes the map by as much as the map itself",
            "check: Yeh et al. 2019, arXiv:1901.09392; number: gradflow's own choice",
        ),
        Threshold(
            "insertion_minus_deletion",
            0.0,
            "probability",
            "for pixels in random order insertion and deletion have the same expected area: the "
            "map orders the pixels no better than chance",
            "curves: Petsiuk et al. 2018, arXiv:1806.07421; zero: from their definition",
        ),
    )
}


@dataclass(frozen=True)
class TrustCheck:
    """One check of a method on one network: the value of each image, their median, the answer."""

    name: str
    values: tuple[float, ...]  # one per image; NaN where it could not be measured

    @property
    def threshold(self) -> Threshold:
        return TRUST_THRESHOLDS[self.name]

    @property
    def value(self) -> float:
        return _median(self.values)

    @property
    def passed(self) -> bool | None:
        """None where nothing could be measured."""
        if np.isnan(self.value):
            return None
        limit = float(self.threshold)
        is_small = self.value < limit
        return self.value > limit if self.name == "insertion_minus_deletion" else is_small


def _median(values: Sequence[float]) -> float:
    usable = [value for value in values if np.isfinite(value)]
    return float(np.median(usable)) if usable else float("nan")


@dataclass(frozen=True, eq=False)
class Trust:
    """What the checks found for one method on one network, on the predicted class of each image.

    `deletion` and `insertion` are mean curves over the images, probabilities at `fractions` of the
    pixels removed or put in.
    """

    method: str
    checks: tuple[TrustCheck, ...]
    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def n_images(self) -> int:
        return len(self.checks[0].values)

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.passed is False)

    @property
    def note(self) -> str | None:
        """What the picture says; None where no check failed."""
        if not self.failed:
            return None
        return "fails: " + ", ".join(SHORT[name] for name in self.failed)

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "n_images": self.n_images,
            "checks": {
                check.name: {
                    "value": to_json(check.value),
                    "values": to_json(check.values),
                    "threshold": float(check.threshold),
                    "unit": check.threshold.unit,
                    "passed": check.passed,
                }
                for check in self.checks
            },
            "curves": {
                "fraction": to_json(self.fractions),
                "deletion": to_json(self.deletion),
                "insertion": to_json(self.insertion),
            },
            "deletion_area": area(self.deletion),
            "insertion_area": area(self.insertion),
            "failed": list(self.failed),
        }


SHORT = {name: name.replace("_minus_", " − ") for name in TRUST_THRESHOLDS}


def check_method(
    model: nn.Module,
    images: Tensor,
    method: str,
    n_classes: int,
    untrained: Callable[[int], nn.Module] | None = None,
) -> Trust:
    """Check a method on a network: the map of the predicted class of each image, (B, 3, S, S).

    `untrained` makes the network as it was before training, from a seed; by default a copy of it
    with fresh weights.
    """
    how = METHODS[method]
    fresh = untrained or partial(reinitialised, model)
    with inspecting(model), torch.enable_grad():
        targets = torch.from_numpy(predict_all(model, images, n_classes).argmax(axis=1))
        targets = targets.to(images.device)
        raw = values_for(how, model, images, targets)
        shown = how.shown(raw).cpu().numpy()
        correlations = [
            [rank_correlation(*pair) for pair in zip(shown, other, strict=True)]
            for other in (_shown_by(how, fresh(seed), images, targets) for seed in SEEDS)
        ]
        deletion, insertion = curves(model, images, shown, targets)
        difference = [area(i) - area(d) for i, d in zip(insertion, deletion, strict=True)]
        checks = (
            TrustCheck("randomisation", tuple(map(_median, zip(*correlations, strict=True)))),
            TrustCheck("infidelity", tuple(unexplained(model, images, raw, targets, how.is_local))),
            TrustCheck("sensitivity", tuple(sensitivity(how, model, images, targets))),
            TrustCheck("insertion_minus_deletion", tuple(difference)),
        )
    fractions = np.linspace(0, 1, N_STEPS + 1)
    return Trust(method, checks, fractions, deletion.mean(axis=0), insertion.mean(axis=0))


def values_for(how: Method, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """(B, C, S, S) values of one class of each image."""
    return how.compute(model, images, targets.unsqueeze(1)).values[:, 0].detach()


def reinitialised(model: nn.Module, seed: int) -> nn.Module:
    """A copy with fresh weights and fresh norms, which has learned nothing."""
    fresh = copy.deepcopy(model)
    device = next(model.parameters()).device
    with seeded(seed, device), torch.no_grad():
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    nets.initialise(fresh, seed=seed)
    return fresh


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's ρ between two maps; 1 for equal ones, NaN where only one of them is constant."""
    if np.array_equal(first, second):
        return 1.0  # also for constants, which have no ranks: the same map whatever the weights
    if first.min() == first.max() or second.min() == second.max():
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def unexplained(
    model: nn.Module, images: Tensor, raw: Tensor, targets: Tensor, is_local: bool
) -> list[float]:
    """Infidelity of each map as a share: E[(β Iᵀφ − Δy)²] / E[Δy²], 0 exact, 1 explains nothing.

    Δy is by how much the logit falls when a random square becomes grey, φ the map, I what was taken
    away: the values themselves where a map is a slope, 1 on the square where it is a share of the
    logit. β is the factor that suits the map best, so that its unit does not matter. Yeh et al.
    2019, https://arxiv.org/abs/1901.09392, definition 2.1 and section 3; computed by Captum.
    """
    phi, n_all = raw.expand_as(images), len(images) * N_SQUARES

    def of(attributions: Tensor, normalize: bool) -> Tensor:
        measured: Tensor = infidelity(
            model,
            _remove_squares(is_local),
            images,
            attributions,
            target=targets,
            n_perturb_samples=N_SQUARES,
            max_examples_per_batch=min(n_all, max(len(images), per_batch(images))),
            normalize=normalize,
        )
        return measured.double().cpu()

    total = of(torch.zeros_like(images), False)
    share = of(phi, True) / total
    return [float(value) for value in torch.where(total > 0, share, torch.nan)]


def _remove_squares(is_local: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    random = np.random.default_rng(0)  # the same squares for every network and method

    def remove(x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[2]
        side = max(1, round(size * SQUARE))
        mask = torch.zeros_like(x)
        for image, (top, left) in zip(
            mask, random.integers(0, size - side + 1, (len(x), 2)), strict=True
        ):
            image[:, top : top + side, left : left + side] = 1
        return (x * mask if is_local else mask), x * (1 - mask)

    return remove


def sensitivity(how: Method, model: nn.Module, images: Tensor, targets: Tensor) -> list[float]:
    """max over noise of ‖φ(x + ε) − φ(x)‖ / ‖φ(x)‖ for the map shown, |ε| ≤ 0.1 at each value.

    Yeh et al. 2019, https://arxiv.org/abs/1901.09392, definition 2.2; computed by Captum.
    """
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor, radius: float) -> Tensor:
        noise = (2 * torch.rand(x.shape, generator=generator) - 1) * radius
        return x + noise.to(x.device)

    def shown(x: Tensor | tuple[Tensor, ...], target: Tensor) -> tuple[Tensor]:
        x = x[0] if isinstance(x, tuple) else x
        target = target.expand(len(x))  # Captum repeats the classes of a batch, not of one image
        with torch.enable_grad():  # Captum switches it off
            return (how.shown(values_for(how, model, x, target)),)  # of a tensor it takes the rows

    largest = sensitivity_max(
        shown, images, noisy, perturb_radius=NOISE_RADIUS, n_perturb_samples=N_NOISY, target=targets
    )
    return [float(value) for value in largest]


def curves(
    model: nn.Module, images: Tensor, shown: np.ndarray, targets: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Deletion and insertion, each (B, steps + 1): the probability of the class, step by step.

    A tenth of the pixels at a time turns grey (deletion), or comes into a grey picture
    (insertion), those of the largest map values first. Both use the same grey, the mean colour:
    for a random order the two then have the same expected area. Equal values are taken in an order
    drawn from a seed. Petsiuk et al. 2018, "RISE", https://arxiv.org/abs/1806.07421, section 3.3
    """
    deletion: list[np.ndarray] = []
    insertion: list[np.ndarray] = []
    for image, values, target in zip(images, shown, targets.tolist(), strict=True):
        n_before = torch.from_numpy(_places(values)).to(images.device)
        cuts = torch.linspace(0, values.size, N_STEPS + 1, device=images.device).round()
        is_taken = (n_before < cuts[:, None, None]).unsqueeze(1)
        for found, kept in ((deletion, ~is_taken), (insertion, is_taken)):
            found.append(predict_all(model, image * kept)[:, target])
    return np.stack(deletion), np.stack(insertion)


def _places(values: np.ndarray) -> np.ndarray:
    """How many pixels come before each: 0 for the largest value; equal ones in a drawn order."""
    draw = np.random.default_rng(0).permutation(values.size)
    order = np.lexsort((draw, -values.ravel()))
    places = np.empty(values.size, dtype=np.int64)
    places[order] = np.arange(values.size)
    return places.reshape(values.shape)


def area(curve: np.ndarray) -> float:
    """The area under a curve over fractions 0 to 1, by trapezoids: a mean probability."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def _shown_by(how: Method, model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    with inspecting(model):
        return np.asarray(how.shown(values_for(how, model, images, targets)).cpu().numpy())
