"""Study: arms × networks × seeds, read from a YAML file. Each cell of it is one training.

An *arm* is a recipe with one thing changed on purpose. Every arm is compared with another one, the
`baseline` unless the file says otherwise, and starts from that one's recipe.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Self

from gradflow.analysis.thresholds import MIN_SEEDS
from gradflow.files import read_yaml
from gradflow.studies.arms import (
    BASELINE,
    CELLS,
    PLACES,
    Arm,
    Cell,
    Combine,
    Network,
    Place,
    Tuned,
    expected_one_of,
    name_repeated,
    read_combine,
)
from gradflow.training.config import MAX_SEEDS, TrainConfig
from gradflow.typed import shown, typed_fields

# Of a study's trainings. Their weights go when they are measured, so nothing can wait.
RECIPE = TrainConfig(rivals_budget=math.inf)

MAX_THREADS = 1024  # of one training; OpenMP would take memory for more

TRIAL_SEED = 999  # of the trials of `tune`; no training of a study has it


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, two networks, and the arms that put it to the test. Checks itself."""

    name: str
    question: str
    base: TrainConfig
    accused: Network
    reference: Network
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]  # the baseline first
    restores: str = ""  # the arm that restores the gradients: link 4 of the verdict
    combine: Combine = "none"
    threads: int = 1
    keep_weights: bool = False
    split_by_seed: bool = False  # `split_seed: seed` in `base`: a split of its own for every seed
    expected_gap: float = 0.3  # nats of training loss, for the plan
    precision: float = 0.25  # wished half width of the interval of a share, for the plan
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)  # as the file gave it
    tuned: tuple[Tuned, ...] = ()  # what the trials said, as far as they have ended

    def __post_init__(self) -> None:
        names = list(self._arms)
        for arm in self.arms[1:]:
            if arm.against not in self._arms or arm.against == arm.name:
                raise ValueError(expected_one_of("`against` of arm " + repr(arm.name), names,
                                           arm.against))  # fmt: skip
            self._check_no_circle(arm)
            self._check_one_tuned_field(arm)
            self._check_controls_something(arm)
        self._check_names(names)
        if not 1 <= self.threads <= MAX_THREADS:
            raise ValueError(f"Expected `threads` from 1 to {MAX_THREADS}, got {self.threads}.")
        self._check_seeds()
        for value, name in ((self.expected_gap, "expected_gap"), (self.precision, "precision")):
            if not 0 < value < math.inf:
                raise ValueError(f"Expected `{name}` above 0 and finite, but got {value}.")
        for arm in self.arms:  # every configuration checks itself
            for place in arm.networks:
                self.config(arm.name, place, self.seeds[0])
        self.trials(Path())

    def _check_names(self, names: Sequence[str]) -> None:
        if self.restores and self.restores not in names:
            raise ValueError(expected_one_of("`restores`", names, self.restores))
        if self.restores and self.arm(self.restores).role != "cause":
            raise ValueError("Expected `restores` to name an arm with the role cause.")
        if len(names) < len(self.arms):  # the combined arm is named by gradflow
            raise ValueError("Expected every arm to have a name of its own, but two share one.")
        if isinstance(self.combine, tuple):
            causes = names[1:]
            for name in self.combine:
                if name not in causes:
                    raise ValueError(expected_one_of("`combine`", causes, name))
            if len({*self.combine}) < 2:
                raise ValueError(f"Expected `combine` to name two arms, got {name!r} twice.")

    def _check_seeds(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(
                f"Expected different `seeds` of 0 or more, but got {shown(list(self.seeds))}."
            )
        if TRIAL_SEED in self.seeds and any(arm.tune for arm in self.arms):
            raise ValueError(f"Expected `seeds` without {TRIAL_SEED}, the seed of the trials.")

    def _check_one_tuned_field(self, arm: Arm) -> None:
        """Trials of one arm do not wait for those of another."""
        fields = {name for one in self._way(arm.name) for name in one.tune}
        if len(fields) > 1:
            raise ValueError(
                f"Expected one tuned field on the way from {BASELINE!r} to arm {arm.name!r}, but "
                f"got {', '.join(sorted(fields))}."
            )

    def _check_controls_something(self, arm: Arm) -> None:
        """A positive control is found by what it tests: a typo there would silence it."""
        if arm.role != "positive control":
            return
        tested = sorted({one.tests for one in self.arms if one.role == "cause"})
        if arm.tests not in tested:
            near = get_close_matches(arm.tests, tested, n=1)
            raise ValueError(
                f"Expected `tests` of the positive control {arm.name!r} to be that of an arm with "
                f"the role cause, one of {', '.join(map(repr, tested)) or 'none'}, but got "
                f"{arm.tests!r}." + (f" Did you mean {near[0]!r}?" if near else "")
            )

    def _check_no_circle(self, arm: Arm) -> None:
        seen = {arm.name: None}
        while arm.name != BASELINE:
            arm = self.arm(arm.against)
            if arm.name in seen:
                raise ValueError(
                    f"Expected every arm to lead back to {BASELINE!r} by `against`, but "
                    f"{', '.join(seen)} go in a circle."
                )
            seen[arm.name] = None

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Self:
        """Read a study file; `changes` replaces fields of its `base`. Raises ValueError."""
        if not path.is_file():
            raise FileNotFoundError(f"Expected a study file, but there is no file {path}.")
        content, _ = read_yaml(path, "a study file", "docs/studies.md explains it.")
        try:
            return cls.read(content, name=path.stem, changes=changes or {})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def read(cls, content: Any, *, name: str, changes: Mapping[str, Any]) -> Self:
        """The study that `content`, as YAML gives it, describes."""
        given = typed_fields(cls, content, "the study")
        if not isinstance(given.get("base", {}), Mapping):
            raise ValueError(f"Expected `base` to be a mapping, but got {given['base']!r}.")
        given["base"] = _with_absolute_data(given.get("base", {}) | dict(changes))
        given["source"] = {"name": name, **given}
        for needed in ("accused", "reference", "arms"):
            if needed not in given:
                raise ValueError(f"Expected `{needed}` in the study, but it is missing.")
        given["base"], given["split_by_seed"] = _read_base(given["base"])
        for place in PLACES:
            given[place] = Network.read(given[place], f"`{place}`")
        given["seeds"] = _seeds(given.get("seeds", int(MIN_SEEDS.value)))
        if not isinstance(given["arms"], Mapping) or not given["arms"]:
            raise ValueError("Expected `arms` to be a mapping from names to arms, but it is not.")
        arms = {str(key): Arm.read(str(key), value) for key, value in given["arms"].items()}
        if BASELINE in arms:
            raise ValueError(f"Expected no arm named {BASELINE!r}: it is the recipe of `base`.")
        given["arms"] = (Arm(name=BASELINE, role="baseline"), *arms.values())
        given["combine"] = read_combine(given.get("combine", "none"))
        given.setdefault("name", name)
        given.setdefault("question", "Why does the accused network do worse?")
        study = cls(**given)
        if isinstance(study.combine, tuple):
            return study.with_arm(study.combined(*study.combine))
        return study

    @property
    def names(self) -> frozenset[str]:
        return frozenset(arm.name for arm in self.arms)

    @cached_property
    def _arms(self) -> dict[str, Arm]:
        return {arm.name: arm for arm in self.arms}

    def arm(self, name: str) -> Arm:
        return self._arms[name]

    def network(self, place: Place) -> Network:
        return self.accused if place == "accused" else self.reference

    def trained_in(self, name: str, place: Place) -> str:
        """The arm whose cells stand for this network in the arm `name`: itself, or `against`."""
        arm = self.arm(name)
        while place not in arm.networks:
            arm = self.arm(arm.against)
        return arm.name

    def config(self, name: str, place: Place, seed: int) -> TrainConfig:
        """The configuration of one cell, without its folder."""
        key = (name, place)
        if key not in self._recipes:
            self._recipes[key] = self._recipe(name, place)
        recipe = self._recipes[key]
        split = seed if self.split_by_seed else recipe.split_seed
        return dataclasses.replace(recipe, seeds=f"{seed},", split_seed=split)

    @cached_property
    def _recipes(self) -> dict[tuple[str, Place], TrainConfig]:
        return {}

    def _recipe(self, name: str, place: Place) -> TrainConfig:
        network = self.network(place)
        where = f"arm {name!r}, {place}"
        config = _config(self.base, network.set, where)
        config = _intervened(config, network.intervene, where)
        for arm in self._way(name):
            if place in arm.networks:
                changes = {**arm.set, **self._tuning(arm, place)}
                config = _intervened(_config(config, changes, where), arm.intervene, where)
        if name != BASELINE:
            # The verdict is about the baseline: only there are the rivals measured.
            config = dataclasses.replace(config, rivals=False, checkpoint_budget=0.0)
        return dataclasses.replace(config, arch=network.arch, wandb="off")

    def choice(self, arm: Arm, place: Place) -> Tuned | None:
        """What the trials of this network of the arm chose; None as long as that is open."""
        return next(
            (
                one
                for one in self.tuned
                if (one.arm, one.place) == (arm.name, place) and one.name in arm.tune
            ),
            None,
        )

    def _tuning(self, arm: Arm, place: Place) -> dict[str, Any]:
        """The field that is tuned and its value, the first one as long as that is open."""
        chosen = self.choice(arm, place)
        return {
            name: values[0] if chosen is None else chosen.value for name, values in arm.tune.items()
        }

    def is_tuned(self, name: str, place: Place) -> bool:
        """Whether every value that this network of the arm is trained with has been chosen."""
        return all(
            self.choice(arm, place) is not None
            for arm in self._way(name)
            if arm.tune and place in arm.networks
        )

    def _way(self, name: str) -> list[Arm]:
        """The arms from the baseline to this one."""
        arm = self.arm(name)
        return [*([] if arm.name == BASELINE else self._way(arm.against)), arm]

    def cells(self, folder: Path) -> list[Cell]:
        """Every training, seed by seed, so that a study that is stopped has whole pairs."""
        return [
            self._cell(folder, arm.name, place, seed)
            for seed in self.seeds
            for arm in self.arms
            for place in arm.networks
        ]

    def ready(self, folder: Path, names: Collection[str] | None = None) -> list[Cell]:
        """The trainings all of whose values have been chosen; one that is another's says so.

        With `names`, those of these arms.
        """
        cells = [one for one in self.cells(folder) if names is None or one.arm in names]
        return name_repeated([one for one in cells if self.is_tuned(one.arm, one.place)])

    def trials(self, folder: Path) -> list[Cell]:
        """The trainings that choose the values of `tune`, of a seed that no other training has."""
        return [
            self._trial(folder, arm.name, place, name, value)
            for arm in self.arms
            for place in arm.networks
            for name, values in arm.tune.items()
            for value in values
        ]

    def _trial(self, folder: Path, arm: str, place: Place, name: str, value: Any) -> Cell:
        config = _config(
            self.config(arm, place, TRIAL_SEED), {name: value, "log_grads": False},
            f"`tune` of arm {arm!r}",
        )  # fmt: skip
        return Cell(
            arm, place, TRIAL_SEED, config, folder / arm / f"{place}-{name}-{value}",
            self.threads, keep_weights=False, trial=f"{name} {value}",
        )  # fmt: skip

    def _cell(self, folder: Path, arm: str, place: Place, seed: int) -> Cell:
        config = self.config(arm, place, seed)
        if needs_others := CELLS in config.intervene:
            text = config.intervene.replace(CELLS, str(folder.resolve()))
            config = dataclasses.replace(config, intervene=text)
        return Cell(
            arm, place, seed, config, folder / arm / f"{place}-s{seed}", self.threads,
            self.keep_weights, needs_others=needs_others,
        )  # fmt: skip

    def combinable(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """The pairs of these arms that do not exclude each other, as two doses of one thing do."""
        for first, second in combinations(names, 2):
            try:
                self.combined(first, second)
            except ValueError:
                continue
            yield first, second

    def with_arm(self, arm: Arm) -> Self:
        return dataclasses.replace(self, arms=(*self.arms, arm))

    def combined(self, first: str, second: str) -> Arm:
        """The arm that makes both changes. Raises ValueError where they exclude each other."""
        one, other = self.arm(first), self.arm(second)
        both = sorted(set(one.set) & set(other.set))
        if both:
            raise ValueError(
                f"Expected arms that can be combined, but {first} and {second} both set "
                f"{', '.join(both)}."
            )
        if one.tune or other.tune:
            raise ValueError(
                f"Expected arms that can be combined, but {first} or {second} is tuned."
            )
        if one.tests and one.tests == other.tests:
            raise ValueError(
                f"Expected arms of two explanations, but {first} and {second} both test "
                f"{one.tests}."
            )
        if one.against != other.against or one.networks != other.networks:
            raise ValueError(
                f"Expected arms that can be combined, but {first} and {second} do not start from "
                "the same arm and change the same networks."
            )
        return Arm(
            name=f"{first} + {second}",
            says=f"Both: {one.says or first} {other.says or second}",
            tests="both together",
            against=one.against,
            networks=one.networks,
            set={**one.set, **other.set},
            intervene="; ".join(part for part in (one.intervene, other.intervene) if part),
        )


def _with_absolute_data(base: Mapping[str, Any]) -> dict[str, Any]:
    """A worker may stand in another folder."""
    data = base.get("data")
    if isinstance(data, str) and data.strip() and Path(data).exists():
        return {**base, "data": str(Path(data).resolve())}
    return dict(base)


def _read_base(given: Mapping[str, Any]) -> tuple[TrainConfig, bool]:
    """The recipe, and whether each seed draws a split of its own."""
    if elsewhere := [name for name in ("arch", "seeds", "out") if name in given]:
        raise ValueError(
            f"Expected `base` without {', '.join(elsewhere)}: `accused` and `reference` name the "
            "networks, `seeds` stands beside `base`, and the folder is that of the study."
        )
    by_seed = given.get("split_seed") == "seed"
    fields = {name: one for name, one in given.items() if not (by_seed and name == "split_seed")}
    return _config(RECIPE, fields, "`base`"), by_seed


def _intervened(config: TrainConfig, added: str, where: str) -> TrainConfig:
    """`config` with these interventions after its own."""
    if not added:
        return config
    text = "; ".join(part for part in (config.intervene, added) if part)
    return _config(config, {"intervene": text}, where)


def _config(base: TrainConfig, changes: Any, where: str) -> TrainConfig:
    """`base` with some fields replaced. Raises ValueError."""
    given = typed_fields(TrainConfig, changes, where)
    try:
        return dataclasses.replace(base, **given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _seeds(given: Any) -> tuple[int, ...]:
    """A count, or the seeds themselves."""
    if type(given) is int and 1 <= given <= MAX_SEEDS:
        return tuple(range(given))
    if isinstance(given, list) and given and all(type(seed) is int for seed in given):
        return tuple(given)
    raise ValueError(
        f"Expected `seeds` to be a count up to {MAX_SEEDS} or a list of whole numbers, but got "
        f"{shown(given)}."
    )
