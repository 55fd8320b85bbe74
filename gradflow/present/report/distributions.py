"""How large the elements of weights and gradients are, layer by layer: shares by power of two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.profile import mean_over_steps
from gradflow.record.histograms import EXPONENTS, GRADIENTS, WEIGHTS, Histograms, span
from gradflow.record.trace import load_histograms

KINDS = {GRADIENTS: "gradients", WEIGHTS: "weights"}
MOMENTS = ("at the start", "halfway", "at the end")


@dataclass(frozen=True)
class Distribution:
    """Of the weights, or of their gradients, of one network at one moment; mean over the seeds."""

    network: str
    kind: str  # of KINDS
    moment: str  # of MOMENTS
    layers: tuple[str, ...]  # the path, input first
    exponents: np.ndarray  # (exponents,): those that some layer has an element of
    shares: np.ndarray  # (layers, exponents) of all elements, zeros among them; NaN: not counted

    def median(self, layer: int) -> float:
        """The exponent of the median element of a layer that is not 0; NaN if there is none."""
        shares = np.nan_to_num(self.shares[layer])
        if not shares.sum() > 0:
            return np.nan
        middle = np.searchsorted(np.cumsum(shares), shares.sum() / 2)
        return float(self.exponents[middle])


def distributions(
    groups: Mapping[str, Sequence[TrainedNetwork]], folders: Mapping[str, Sequence[Path]]
) -> tuple[Distribution, ...]:
    """Of every network whose seeds have histograms, in the order in which they are offered."""
    found = []
    for name, group in groups.items():
        of_seeds = [load_histograms(path, at_most=len(MOMENTS)) for path in folders[name]]
        known = [one for one in of_seeds if one is not None]
        if len(known) < len(of_seeds):
            continue
        layers = {layer.weight: layer.name for layer in group[0].layers if layer.weight}
        moments = MOMENTS if all(len(one) == len(MOMENTS) for one in known) else MOMENTS[-1:]
        for kind in KINDS:
            for step, moment in reversed(list(enumerate(moments, -len(moments)))):
                shares = mean_over_steps(
                    np.array([_of_layers(one, kind, step, list(layers)) for one in known])
                )
                part = span(np.nansum(shares, axis=0))
                if part.stop:
                    where = (tuple(layers.values()), EXPONENTS[part], shares[:, part])
                    found.append(Distribution(name, kind, moment, *where))
    return tuple(found)


def _of_layers(found: Histograms, kind: str, step: int, sites: Sequence[str]) -> np.ndarray:
    """(sites, exponents); NaN where a site was not counted."""
    at = {site: i for i, site in enumerate(found.sites)}
    shares = found.shares(kind)[step]
    nothing = np.full(shares.shape[1], np.nan)
    return np.array([shares[at[site]] if site in at else nothing for site in sites])
