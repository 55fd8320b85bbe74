"""TrainConfig: the original's recipe, checked values, a file that comes back as it was."""

import dataclasses
import inspect
from pathlib import Path

import pytest

from gradflow.training.config import TrainConfig
from gradflow.training.recipes import RECIPES


def test_defaults_are_the_original_recipe() -> None:
    config = TrainConfig()
    got = (config.epochs, config.batch_size, config.optimizer, config.lr, config.weight_decay)
    assert got == (50, 50, "adamw", 6e-4, 1e-4)
    got = (config.label_smoothing, config.schedule, config.step_size, config.gamma)
    assert got == (0.2, "step", 5, 0.1)
    assert (config.patience, config.rotation) == (10, 15.0)
    assert config.networks == ("plain_34", "resnet_34")


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


def test_saved_and_loaded_config_is_the_same(tmp_path: Path) -> None:
    config = TrainConfig(lr=1e-3, seeds="3,7", image_size=64, out=Path("else"), log_grads=True)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert TrainConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("part", [0.0, 0.5, 0.98])
def test_a_file_that_was_cut_off_says_so(part: float, tmp_path: Path) -> None:
    path, whole = tmp_path / "config.yaml", TrainConfig().to_yaml()
    path.write_text(whole[: int(part * len(whole))], encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml, but it holds none: "):
        TrainConfig.load(path)


@pytest.mark.parametrize(
    ("seeds", "expected"), [("1", (0,)), ("3", (0, 1, 2)), ("3,7", (3, 7)), ("7,", (7,))]
)
def test_seeds_are_a_count_or_a_list(seeds: str, expected: tuple[int, ...]) -> None:
    assert TrainConfig(seeds=seeds).seed_list == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", "0"),
        ("seeds", "-1"),
        ("seeds", "a"),
        ("seeds", "3,3"),
        ("arch", "plain_50"),
        ("arch", "plain_18,plain_18"),
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("label_smoothing", 1.0),
        ("momentum", -0.1),
        ("val_fraction", 0.0),
        ("rotation", 200.0),
        ("flip", 1.5),
        ("image_size", 4),
        ("image_size", 0),
        ("patience", -1),
        ("min_delta", -1e-3),
        ("rivals_budget", -0.1),
        ("precision", "fp8"),
        ("split", "by hand"),
        ("max_overhead", "2 percent"),
        ("max_overhead", "0%"),
        ("max_overhead", "120%"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Expected `{field}`.*but got"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_an_interval_and_a_share_of_the_time_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="Expected `every` or `max_overhead`, but got both"):
        TrainConfig(every=4, max_overhead="2%")


def test_histograms_without_records_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected `log_grads` with `histograms`"):
        TrainConfig(histograms=True)
    assert TrainConfig(histograms=True, log_grads=True).histograms


def test_every_field_has_a_description_for_the_help() -> None:
    source = Path(__file__).parents[2] / "gradflow/training/config.py"
    lines = source.read_text(encoding="utf-8").splitlines()
    for field in dataclasses.fields(TrainConfig):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
        assert lines[at + 1].strip().startswith('"""'), field.name
