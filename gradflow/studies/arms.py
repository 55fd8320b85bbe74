"""What a study is made of: two networks, arms, in each of which one thing is changed, and cells."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

from gradflow.architectures import ARCHITECTURES
from gradflow.training.config import DATA_FIELDS, TrainConfig
from gradflow.typed import typed, typed_fields

Place = Literal["accused", "reference"]
PLACES: tuple[Place, ...] = get_args(Place)
Role = Literal["cause", "positive control", "baseline"]
# The two strongest arms, once they are known, or two that the file names.
Combine = Literal["none", "strongest"] | tuple[str, str]

BASELINE = "baseline"
CELLS = "{cells}"  # in an intervention: the folder of the study's cells, as in a transplant
# What belongs to the study as a whole, or is decided cell by cell.
NOT_IN_ARMS = ("arch", "seeds", "out", "device", "precision", "wandb", "project")
# What the outcomes are measured with: another loss, or other images, and no gap can be compared.
# `image_size` is not among them: the images stay the same, seen coarser or finer. Nor is what
# changes no image.
OUTCOME_FIELDS = {"label_smoothing", *DATA_FIELDS} - {
    "image_size",
    "allow_outside",
    "memory_budget",
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of the two networks of a study, with what sets it apart from the recipe."""

    arch: str
    set: Mapping[str, Any] = field(default_factory=dict)
    intervene: str = ""

    def __post_init__(self) -> None:
        _check_may_differ(f"`set` of {self.arch}", self.set)

    @classmethod
    def read(cls, given: Any, where: str) -> Self:
        found = cls(arch=given) if isinstance(given, str) else _read(cls, given, where)
        if found.arch not in ARCHITECTURES:
            raise ValueError(expected_one_of(where, list(ARCHITECTURES), found.arch))
        return found

    def label(self) -> str:
        """The network's name, and what sets it apart."""
        changes = [f"{key} {value}" for key, value in self.set.items()]
        changes += [self.intervene] if self.intervene else []
        return f"{self.arch} ({'; '.join(changes)})" if changes else self.arch


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A recipe with one thing changed: for `networks`, on top of the recipe of `against`.

    `set` replaces fields of the training's configuration; `intervene` is added to the
    interventions that are there already. A network that an arm leaves alone is that of `against`.
    `tune` names a field and the values to try: each network gets the one that suits it best.
    """

    name: str
    says: str = ""
    tests: str = ""  # the explanation that it tests
    role: Role = "cause"
    against: str = BASELINE
    networks: tuple[Place, ...] = PLACES
    set: Mapping[str, Any] = field(default_factory=dict)
    intervene: str = ""
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    series: str = ""  # arms of one series are doses of one thing
    dose: float | None = None
    dose_without: float | None = None  # the dose that `against` has

    def __post_init__(self) -> None:
        where = f"arm {self.name!r}"
        if not re.fullmatch(r"\w[\w .,+=()-]*", self.name):
            raise ValueError(
                f"Expected the name of {where} to suit a folder: letters, digits and . , + = ( ) -."
            )
        for place in self.networks:
            if place not in PLACES:
                raise ValueError(expected_one_of(f"`networks` of {where}", PLACES, place))
        if not self.networks:
            raise ValueError(f"Expected {where} to have `networks` of {PLACES}, but got none.")
        if not (self.set or self.intervene or self.tune) and self.name != BASELINE:
            raise ValueError(
                f"Expected {where} to change something with `set`, `intervene` or `tune`."
            )
        if (self.series == "") != (self.dose is None) or (
            self.dose_without is not None and self.dose is None
        ):
            raise ValueError(
                f"Expected `series` and `dose` of {where} together, or neither, and "
                "`dose_without` only beside them."
            )
        _check_may_differ(f"`set` and `tune` of {where}", (*self.set, *self.tune))
        self._check_tune(where)

    def _check_tune(self, where: str) -> None:
        if not self.tune:
            return
        name, values = next(iter(self.tune.items()))
        if len(self.tune) > 1 or not isinstance(values, list | tuple) or len(values) < 2:
            raise ValueError(
                f"Expected `tune` of {where} to name one field with a list of two or more values, "
                f"but got {dict(self.tune)}."
            )
        if len(set(map(str, values))) < len(values) or name in self.set:
            raise ValueError(
                f"Expected `tune` of {where} to have different values, and {name} not in `set`."
            )
        if CELLS in self.intervene:
            raise ValueError(
                f"Expected {where} without `tune`: its intervention reads what other trainings of "
                "the same seed recorded, and the trials have a seed of their own."
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The two arms that this one combines; none of another arm."""
        return tuple(self.name.split(" + ", 1)) if " + " in self.name else ()

    @classmethod
    def read(cls, name: str, given: Any) -> Self:
        fields = dict(given) if isinstance(given, Mapping) else given
        if isinstance(fields, dict) and "networks" in fields:
            places = fields["networks"]
            fields["networks"] = tuple(places) if isinstance(places, list) else (places,)
        if isinstance(fields, dict) and isinstance(fields.get("tune"), Mapping):
            fields["tune"] = {key: _tried(key, tried) for key, tried in fields["tune"].items()}
        arm: Self = _read(cls, fields, f"arm {name!r}", name=name)
        return arm


@dataclass(frozen=True)
class Tuned:
    """What was tried for one network of an arm, and the value that did best."""

    arm: str
    place: Place
    name: str  # of the field
    value: Any
    tried: tuple[tuple[Any, float | None], ...]  # value, validation loss; None where it diverged

    @property
    def is_at_an_end(self) -> bool:
        """Whether a better value may lie beyond those that were tried."""
        values = [value for value, _ in self.tried]
        return all(isinstance(one, int | float) for one in values) and self.value in (
            min(values),
            max(values),
        )


@dataclass(frozen=True)
class Cell:
    """One training of a study: this arm, this network, this seed, this configuration."""

    arm: str
    place: Place
    seed: int
    config: TrainConfig
    folder: Path
    threads: int
    keep_weights: bool
    needs_others: bool = False  # reads what the cells without it recorded
    trial: str = ""  # of which value of `tune`, as "lr 0.1"; "" in a training that counts
    same_as: Path | None = None  # the folder of another cell, whose training would be repeated

    @property
    def name(self) -> str:
        return f"{self.label}/{self.place}-s{self.seed}"

    @property
    def label(self) -> str:
        """The arm, and in a trial the value that is tried."""
        return f"{self.arm}, {self.trial}" if self.trial else self.arm


def name_repeated(cells: Iterable[Cell]) -> list[Cell]:
    """The cells; one whose training an earlier one has, rivals aside, says where that is.

    So it is where the value that suits a network best is that of the recipe.
    """
    folders: dict[TrainConfig, Path] = {}
    found = []
    for cell in cells:
        training = dataclasses.replace(cell.config, rivals=False, checkpoint_budget=0.0)
        first = folders.setdefault(training, cell.folder)
        is_first = first == cell.folder
        found.append(cell if is_first else dataclasses.replace(cell, same_as=first))
    return found


def _tried(name: Any, values: Any) -> Any:
    """The values of `tune` as the field has them; no list, or no field, is refused later."""
    hint = get_type_hints(TrainConfig).get(str(name))
    if hint is None or name in NOT_IN_ARMS or not isinstance(values, list):
        return values
    return [typed(value, hint, f"a value of `tune` for {name}") for value in values]


def _read(kind: Any, given: Any, where: str, **more: Any) -> Any:
    try:
        return kind(**more, **typed_fields(kind, given, where))
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{where}: {error}") from None


def _check_may_differ(what: str, names: Iterable[str]) -> None:
    """Raises ValueError where a cell would differ in what all cells must share."""
    given = list(names)
    if fixed := [name for name in given if name in NOT_IN_ARMS]:
        raise ValueError(
            f"Expected {what} without {', '.join(fixed)}: it holds for the whole study. Put it "
            "into `base`."
        )
    if fixed := [name for name in given if name in OUTCOME_FIELDS]:
        raise ValueError(
            f"Expected {what} without {', '.join(fixed)}: losses and accuracies would be measured "
            "in two ways, and no gap could be compared. Put it into `base`, or make two studies."
        )


def read_combine(given: Any) -> Combine:
    if isinstance(given, list):
        if len(given) != 2:
            raise ValueError(f"Expected `combine` to name two arms, got {tuple(given)}.")
        return given[0], given[1]
    choices = ("none", "strongest")
    if given not in choices:
        raise ValueError(expected_one_of("`combine`", choices, given))
    combine: Combine = given
    return combine


def expected_one_of(what: str, choices: Any, got: Any) -> str:
    return f"Expected {what} to be one of {', '.join(map(str, choices))}, but got {got!r}."
