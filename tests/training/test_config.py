"""TrainConfig: the original's recipe and checked values; tests/robust/ has its files."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from gradflow.training.config import TrainConfig
from gradflow.training.recipes import RECIPES


def test_defaults_are_the_original_recipe() -> None:
    recipe = {
        "epochs": 50, "batch_size": 50, "optimizer": "adamw", "lr": 6e-4, "weight_decay": 1e-4,
        "label_smoothing": 0.2, "schedule": "step", "step_size": 5, "gamma": 0.1, "patience": 10,
        "rotation": 15.0, "networks": ("plain_34", "resnet_34"),
    }  # fmt: skip
    assert {name: getattr(TrainConfig(), name) for name in recipe} == recipe


def test_recipes_set_fields_that_there_are_and_the_help_and_the_config_say_so() -> None:
    for data, recipe in RECIPES.items():
        own = TrainConfig(data=data, **recipe.fields)
        text = own.to_yaml()
        comment = text.splitlines()[0]
        assert comment.startswith(f"# The recipe of {data}: ")
        assert recipe.why in comment
        source = inspect.getsource(TrainConfig)
        for name, value in recipe.fields.items():
            assert f"{name} {value}" in comment
            assert f"({data}: {value})" in source.split(f"    {name}: ")[1].split('"""')[1]
    assert not TrainConfig().to_yaml().startswith("#"), "in Python all of it is the study's"


def test_data_decide_what_is_left_open() -> None:
    photos = TrainConfig().resolved(image_size=224, mirror=True)
    assert (photos.image_size, photos.stem, photos.flip) == (224, "photo", 0.5)
    digits = TrainConfig().resolved(image_size=8, mirror=False)
    assert (digits.image_size, digits.stem, digits.flip) == (8, "small", 0.0)
    chosen = TrainConfig(image_size=64, stem="small", flip=0.1, width=0.25, device="cpu")
    assert chosen.resolved(image_size=224, mirror=True) == chosen


@pytest.mark.parametrize(
    ("seeds", "expected"), [("1", (0,)), ("3", (0, 1, 2)), ("3,7", (3, 7)), ("7,", (7,))]
)
def test_seeds_are_a_count_or_a_list(seeds: str, expected: tuple[int, ...]) -> None:
    assert TrainConfig(seeds=seeds).seed_list == expected


# Beyond the edge of each kind of limit; tests/robust/ tries numbers that are far beyond it.
BEYOND: dict[str, tuple[object, ...]] = {
    "seeds": ("0", "-1", "a", "3,3"), "arch": ("plain_50", "plain_18,plain_18"), "epochs": (0,),
    "batch_size": (1,), "lr": (0.0, float("nan")), "label_smoothing": (1.0,), "momentum": (-0.1,),
    "val_fraction": (0.0,), "rotation": (200.0,), "flip": (1.5,), "image_size": (4, 0),
    "patience": (-1,), "min_delta": (-1e-3,), "rivals_budget": (-0.1,), "precision": ("fp8",),
    "split": ("by hand",), "max_overhead": ("2 percent", "0%", "120%"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BEYOND.items() for value in values]
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Expected `{field}`.*but got"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every": 4, "max_overhead": "2%"}, "Expected `every` or `max_overhead`, but got both"),
        ({"histograms": True}, "Expected `log_grads` with `histograms`"),
        ({"epochs": 3, "warmup": 3}, "`warmup` to be 0 or more, and less than `epochs`"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given)
    assert TrainConfig(histograms=True, log_grads=True).histograms


def test_every_field_has_a_description_for_the_help() -> None:
    source = Path(__file__).parents[2] / "gradflow/training/config.py"
    lines = source.read_text(encoding="utf-8").splitlines()
    for field in dataclasses.fields(TrainConfig):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
        assert lines[at + 1].strip().startswith('"""'), field.name
