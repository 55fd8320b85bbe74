"""Every field of a configuration file is obeyed, or refused with file and line."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradflow.cli.entry import app
from gradflow.training.config import TrainConfig

# A value of each field that is not its default.
OTHER: dict[str, Any] = {
    "data": "pictures", "download": True, "allow_outside": True, "image_size": 64,
    "split": "random", "twins": "exact", "split_seed": 3, "val_fraction": 0.15,
    "test_fraction": 0.25, "on_bad": "skip", "memory_budget": 1.5, "arch": "resnet_18",
    "shortcut": "A", "stem": "photo", "width": 0.25, "init": "torch-default", "seeds": "3,7",
    "epochs": 12, "batch_size": 20, "optimizer": "sgd", "lr": 1e-3, "weight_decay": 1e-3,
    "momentum": 0.5, "label_smoothing": 0.1, "schedule": "cosine", "warmup": 2, "lr_sum": "step",
    "step_size": 7, "gamma": 0.5, "patience": 3, "min_delta": 0.5, "flip": 0.3, "rotation": 5.0,
    "intervene": "freeze(layers=1)", "device": "cpu", "precision": "bf16",
    "channels_last": False, "log_grads": True, "histograms": True, "every": 4, "cadence": 4,
    "max_overhead": "2%",
    "checkpoint_budget": 1.0, "rivals": False, "rivals_budget": 0.2, "wandb": "off",
    "project": "mine", "tensorboard": True, "alarms": False, "out": "elsewhere",
}  # fmt: skip
FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def read(path: Path, *flags: str) -> TrainConfig:
    """What `gradflow train --config path` would train."""
    arguments = ["train", "--config", str(path), *flags]
    _, bound, _ = app.parse_args(arguments, exit_on_error=False)
    config = bound.arguments["config"]
    assert isinstance(config, TrainConfig)
    return config


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_file_is_obeyed_and_the_command_line_goes_first(
    name: str, tmp_path: Path
) -> None:
    assert name in OTHER, "a new field needs a value here"
    value = Path(OTHER[name]) if name == "out" else OTHER[name]
    needed: dict[str, Any] = {"data": "elsewhere", "log_grads": name == "histograms"}
    base = TrainConfig(**needed)  # the digits would bring a recipe of their own
    changed = dataclasses.replace(base, **{name: value})
    assert changed != base
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(needed | {name: OTHER[name]}), encoding="utf-8")
    assert read(file) == changed
    if name == "data":
        assert read(file, "--data", "mine") == TrainConfig(data="mine")
    elif name not in ("every", "warmup"):
        assert read(file, "--every", "1", "--warmup", "0") == changed


def test_a_whole_configuration_comes_back_from_its_own_file(tmp_path: Path) -> None:
    config = TrainConfig(**OTHER | {"max_overhead": "off", "out": Path("x")})
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert read(file) == config


WRONG = {
    "epochs: 1.5": "line 1: Expected `epochs` of a training to be a whole number, but got 1.5",
    "lr: 0.1\nepochs: yes": "line 2: Expected `epochs` of a training to be a whole number",
    "train: {epochs: 1}": "line 1: Expected the fields of a training, but got 'train'",
    "lr: 1\nepoch: 3": "line 2: Expected the fields of a training, but got 'epoch'. Did you mean",
    "data: 5": "Expected `data` of a training to be text",
    "data: [a, b]": "Expected `data` of a training to be text",
    "data: null": "Expected `data` of a training to be text",
    "arch: [plain_18]": "Expected `arch` of a training to be text",
    "seeds: [1, 2]": "Expected `seeds` of a training to be text",
    "log_grads: 1": "Expected `log_grads` of a training to be true or false",
    "rivals: 'no'": "Expected `rivals` of a training to be true or false",
    "flip: often": "Expected `flip` of a training to be a number",
    "lr: true": "Expected `lr` of a training to be a number",
    "split: best": "Expected `split` of a training to be one of grouped, random, but got 'best'",
    "device: [cpu]": "Expected `device` of a training to be one of",
    "out: 3": "Expected `out` of a training to be text",
    "json: true": "but got 'json'",
    "resume: runs/x": "but got 'resume'",
    "config: other.yaml": "but got 'config'",
    "5: 3": "but got 5",
    "lr: 1\nlr: 2": "`lr` is given in line 1 and in line 2",
    "- lr": "to be a mapping",
    "just text": "to be a mapping",
    "lr: [": "line 2",
    "\tlr: 3": "line 1",
    "lr: !!python/object/apply:os.system [ls]": "line 1",
    "lr: !secret 3": "line 1",
    "lr: *a": "line 1",
    "lr: 1\nepochs: 0": "line 2: Expected `epochs` to be from 1",
    "seeds: 1\narch: vgg": "line 2: Expected `arch`",
    "epochs: 1:30": "Expected `epochs` of a training to be a whole number, but got '1:30'",
    "epochs: 010": "Expected `epochs` of a training to be a whole number, but got '010'",
    "lr: '0.1'": "Expected `lr` of a training to be a number, but got '0.1'",
    "log_grads: yes": "Expected `log_grads` of a training to be true or false, but got 'yes'",
    "project: a/b": "line 1: Expected `project` to be 1 to 128 characters",
    "project: ' '": "line 1: Expected `project` to be 1 to 128 characters",
    'out: "a\\0b"': "line 1: Expected `out` to be a path",
    "intervene: norm_bias(beta=1e99)": "line 1: norm_bias: Expected `beta` finite",
    "lr: .inf": "Expected `lr` to be from",
    "lr: .nan": "Expected `lr` to be from",
    "width: 1e400": "Expected `width` to be from",
    "epochs: 1000000000000": "Expected `epochs` to be from 1 to",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ndata: [*c, *c]": "but got 'a'",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_field_or_no_value_of_it_is_refused(
    text: str, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text, encoding="utf-8")
    said = command("train", "--config", "mine.yaml")
    assert said.code == 2
    assert WRONG[text] in said.err
    assert not Path("runs").exists(), "before a run has a folder"


def test_a_field_that_fits_with_another_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: elsewhere\nhistograms: true\nwarmup: 60\n", encoding="utf-8")
    config = TrainConfig(data="elsewhere", histograms=True, log_grads=True, warmup=60, epochs=100)
    assert read(file, "--log-grads", "--epochs", "100") == config


def test_a_bare_off_is_the_word_and_a_number_needs_no_point(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: elsewhere\nwandb: off\nmax_overhead: off\nlr: 1e-3\n", encoding="utf-8")
    assert read(file) == TrainConfig(data="elsewhere", wandb="off", lr=0.001)


@pytest.mark.parametrize(
    "text", ["off", "1e3", "010", "1:30", "yes", "~", "2001-01-01", "<<", ".5"]
)
def test_text_that_looks_like_something_else_comes_back_as_text(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    config = TrainConfig(data=text, out=Path(text))
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert TrainConfig.load(file) == config
    assert yaml.safe_load(file.read_text("utf-8"))["data"] == text


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_that_is_no_utf_8_is_named(encoding: str, tmp_path: Path, command: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: größe\n", encoding=encoding)
    said = command("train", "--config", file)
    assert (said.code, "mine.yaml" in said.err) == (2, True)


def test_a_config_file_beside_resume_is_refused(run: Path, command: Any) -> None:
    said = command("train", "--resume", run, "--config", run / "config.yaml")
    assert (said.code, "no other options with --resume" in said.err) == (2, True)


def test_a_runs_own_configuration_trains_on_the_same_data(
    trained: Path, tmp_path: Path, command: Any
) -> None:
    said = command("train", "--config", trained / "config.yaml", "--out", tmp_path, "--epochs", "1",
                   "--no-log-grads", "--arch", "plain_18", "--json")  # fmt: skip
    assert said.code == 0
    (again,) = tmp_path.glob("*/data.json")
    assert again.read_text("utf-8") == (trained / "data.json").read_text("utf-8")
