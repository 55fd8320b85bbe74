"""The case to judge: a network that is said to suffer, beside one that does not, seed by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar

import numpy as np

from gradflow.analysis.layers import Layer, align, body, depth_note, paths
from gradflow.analysis.network import TrainedNetwork, early

Number = TypeVar("Number", bool, float)
# Where the records come from: what to do next depends on it.
Source = Literal["traces", "records", "training", "study"]


@dataclass(frozen=True)
class Case:
    """The accused network and, if there is one, the reference network, of the same seeds."""

    accused: tuple[TrainedNetwork, ...]
    reference: tuple[TrainedNetwork, ...] = ()
    notes: tuple[str, ...] = ()  # what was left out
    changed: str = ""  # what was changed on purpose in these trainings, in a sentence
    lost: tuple[int, int] = (0, 0)  # seeds that only the accused, only the reference did not finish
    source: Source = "traces"

    @classmethod
    def of(
        cls, accused: Sequence[TrainedNetwork], reference: Sequence[TrainedNetwork] = ()
    ) -> Self:
        """Pair by seed; what has no partner is left out and noted. Raises ValueError."""
        if not accused:
            raise ValueError("Expected at least one trained network to judge, but got none.")
        for group in (accused, reference):
            seeds = [network.seed for network in group]
            if len(set(seeds)) < len(seeds):
                raise ValueError(
                    f"Expected every seed of {group[0].name} once, but got {sorted(seeds)}. Leave "
                    "out one of the runs. The seed of records from a loop of one's own is the end "
                    "of their folder's name: plain-s0, plain-s1."
                )
        accused, reference, asked = _along_one_path(accused, reference)
        if not reference:
            return cls(tuple(sorted(accused, key=lambda one: one.seed)), (), asked)
        theirs = {network.seed: network for network in reference}
        pairs = [(one, theirs[one.seed]) for one in accused if one.seed in theirs]
        if not pairs:
            raise ValueError(
                f"Expected {accused[0].name} and {reference[0].name} with a seed in common, but "
                f"got {[one.seed for one in accused]} and {[one.seed for one in reference]}. Train "
                "both with the same seeds: a difference is judged in pairs. The seed of records "
                "from a loop of one's own is the end of their folder's name: plain-s0, plain-s1."
            )
        pairs.sort(key=lambda pair: pair[0].seed)
        paired = {one.seed for one, _ in pairs}
        alone = [one for one in (*accused, *reference) if one.seed not in paired]
        notes = tuple(
            f"{one.name}, seed {one.seed}, was left out: it has no partner." for one in alone
        )
        align(pairs[0][0].layers, pairs[0][1].layers)  # says so where they do not compare
        mine, others = zip(*pairs, strict=True)
        return cls(tuple(mine), tuple(others), (*notes, *asked))

    @property
    def name(self) -> str:
        return self.accused[0].name

    @property
    def reference_name(self) -> str:
        return self.reference[0].name if self.reference else ""

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(network.seed for network in self.accused)

    @property
    def common_layers(self) -> tuple[Layer, ...]:
        """Those that both networks have, or all of the accused's if it stands alone."""
        layers = self.accused[0].layers
        return align(layers, self.reference[0].layers) if self.reference else layers

    def each(self, number: Callable[[TrainedNetwork], float]) -> tuple[float, ...]:
        """One number per seed of the accused network."""
        return tuple(number(network) for network in self.accused)

    def pairs(
        self, number: Callable[[TrainedNetwork, TrainedNetwork], Number]
    ) -> tuple[Number, ...]:
        """One number per seed from both networks; none without a reference."""
        if not self.reference:
            return ()
        return tuple(map(number, self.accused, self.reference))


def _along_one_path(
    accused: Sequence[TrainedNetwork], reference: Sequence[TrainedNetwork]
) -> tuple[Sequence[TrainedNetwork], Sequence[TrainedNetwork], tuple[str, ...]]:
    """Both with the path along which the accused's δ shrinks most, and what is said of it."""
    first = accused[0]
    of_networks = [(group[0].name, depth_note(group[0].trace)) for group in (accused, reference)
                   if group]  # fmt: skip
    by_note: dict[str, list[str]] = {}
    for name, note in of_networks:
        by_note.setdefault(note, []).append(name)
    notes = [f"{' and '.join(names)}: {note}" for note, names in by_note.items() if note]
    n_paths = min(len(paths(one.trace)) for one in accused)
    found = [body(path) for path in paths(first.trace)[:n_paths]]
    if len(found) > 1:
        changes = [
            np.mean(
                [
                    replace(one, path=path).rate("output_gradient", early(one)).decades
                    for one in accused
                ]
            )
            for path in range(len(found))
        ]
        asked = int(np.argmin(np.nan_to_num(changes)))
        said = [
            f"from {path[0].name} to {path[-1].name} (first over last δ {10**change:.3g})"
            for path, change in zip(found, changes, strict=True)
        ]
        others = ", ".join(one for i, one in enumerate(said) if i != asked)
        notes.append(
            f"{first.name} has {len(found)} paths. The verdict follows the one along which δ "
            f"shrinks most early in training, {said[asked]}; not {others}."
        )
        accused = [replace(one, path=asked) for one in accused]
    return accused, [_beside(one, accused[0].layers) for one in reference], tuple(notes)


def _beside(network: TrainedNetwork, layers: Sequence[Layer]) -> TrainedNetwork:
    """The network along the path that has most of these layers, by name."""
    names = {layer.name for layer in layers}
    shared = [len(names & {layer.name for layer in path}) for path in paths(network.trace)]
    return replace(network, path=int(np.argmax(shared)))
