"""Examination: complete, reproducible, and no danger to the training that it follows."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import gradflow.training.examination
from gradflow.examine.path import path_layers
from gradflow.training.config import TrainConfig
from gradflow.training.examination import (
    MAX_IMAGES,
    MEASUREMENTS,
    WORTH,
    Which,
    _affordable,
    examine_network,
    finish_network,
)
from gradflow.training.fit import make_accelerator
from gradflow.training.images import Data, load_data
from gradflow.training.rundir import NetworkDir
from gradflow.training.train import begin_run, train_network
from gradflow.training.weights import build_network, load_tensors

Run = tuple[NetworkDir, TrainConfig, Data]
MODES = {"running", "recalibrated", "batch"}
QUALITY = {"loss", "cross_entropy", "accuracy", "balanced_accuracy"}


def on_cpu() -> Accelerator:
    """Made anew: other tests of the process reset what Accelerate keeps."""
    return make_accelerator(TrainConfig(device="cpu"))


@pytest.fixture(scope="module")
def prepare(
    draw_pictures: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """Makes a run that is to come, on three classes of noisy pictures."""

    def make(**settings: Any) -> Run:
        folder = tmp_path_factory.mktemp("run")
        config, data = load_data(
            TrainConfig(
                data=str(draw_pictures(folder)), image_size=8, arch="plain_18", width=0.125,
                batch_size=8, test_fraction=0.4, log_grads=True, every=100, device="cpu",
                wandb="off", out=folder, **{"rivals_budget": math.inf} | settings,
            )
        )  # fmt: skip
        return begin_run(config, data, on_cpu()).network("plain_18", 0), config, data

    return make


def train(network: NetworkDir, config: TrainConfig, data: Data) -> None:
    list(train_network(network, config, data, on_cpu()))


@pytest.fixture(scope="module")
def run(prepare: Callable[..., Run]) -> Run:
    """Trained for 12 steps: of the weights that are looked at, those of step 90 are missing."""
    made = prepare(epochs=3)
    train(*made)
    return made


@pytest.fixture(scope="module")
def examination(run: Run) -> dict[str, Any]:
    found = run[0].examination()
    assert found is not None, "train_network measures and saves"
    return found


def test_every_measurement_is_there_at_its_steps(run: Run, examination: dict[str, Any]) -> None:
    network, _, data = run
    assert network.weight_steps() == [0, 10]
    assert {name: sorted(examination[name]) for name in MEASUREMENTS} == {
        "dead": ["end"], "batchnorm": ["end"], "rank": ["0", "10"], "reset": ["end"],
        "noise": ["10"],
    }  # fmt: skip
    assert examination["n_images"] == len(data.split.train) <= MAX_IMAGES
    assert examination["batch_size"] == 8


def test_content_of_the_measurements(run: Run, examination: dict[str, Any]) -> None:
    network, config, _ = run
    path = examination["path"]
    assert (path[0], path[-1], len(path)) == ("conv1.weight", "fc.weight", 18)
    stages = {"relu": 8, "layer1": 32, "layer2": 64, "layer3": 128, "layer4": 256}
    assert {stage: n for stage, (_, n) in examination["dead"]["end"].items()} == stages
    table = examination["batchnorm"]["end"]
    for part in ("train", "test"):
        for transform in ("augmented", "plain"):
            assert table[part][transform].keys() == MODES
            assert all(scores.keys() == QUALITY for scores in table[part][transform].values())
    assert len(table["divergence"]) == 17
    assert all(nats >= 0 for nats in table["divergence"].values())
    rank = examination["rank"]["10"]
    assert rank["sites"][0] == "relu"
    assert all(len(rank[name]) == 17 for name in rank)
    assert examination["noise"]["10"].keys() == {*path, "all"}
    layers = path_layers(network.load_model(config, 3, "last"))
    assert examination["reset"]["end"]["layers"] == layers[:5]


def test_values_agree_with_what_training_found(run: Run, examination: dict[str, Any]) -> None:
    """Running statistics are what evaluation has, batch statistics what training has."""
    network, config, data = run
    evaluated = network.evaluation()["last"]
    table = examination["batchnorm"]["end"]
    for part in ("train", "test"):
        expected = {name: evaluated[part][name] for name in QUALITY}
        assert len(getattr(data.split, part)) % 8 != 1, "else batches leave out an image"
        assert table[part]["plain"]["running"] == pytest.approx(expected, rel=1e-4)
    reset, plain = examination["reset"]["end"], table["train"]["plain"]["recalibrated"]
    assert (reset["loss"], reset["accuracy"]) == (plain["loss"], plain["accuracy"])
    assert reset["loss_reset"] != reset["loss"]


def unexamined(network: NetworkDir, folder: Path) -> NetworkDir:
    """The same network as if it had just been trained."""
    shutil.copytree(network.path, folder / network.name)
    (folder / network.name / "examination.json").unlink()
    return NetworkDir(folder / network.name, network.arch, network.seed)


def test_the_same_again_and_nothing_is_changed(
    run: Run, examination: dict[str, Any], tmp_path: Path
) -> None:
    whole, config, data = run
    network = unexamined(whole, tmp_path)
    files = {path: path.read_bytes() for path in network.path.glob("*.pt")}
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    told: list[tuple[int, int]] = []
    found = examine_network(network, config, data, progress=lambda *done: told.append(done))
    assert found == examination
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]  # type: ignore[index]
    assert {path: path.read_bytes() for path in network.path.glob("*.pt")} == files
    n_measured = sum(len(examination[name]) for name in MEASUREMENTS)
    assert told == [(done, n_measured) for done in range(n_measured + 1)]


def test_a_budget_is_spent_in_the_order_of_worth() -> None:
    """On 1 step a measurement and 10 to recalibrate the weights of a step, which is paid once."""
    costs = dict.fromkeys(MEASUREMENTS, 1.0) | {"noise": 4.0, "recalibration": 10.0}
    points: list[tuple[str, Which]] = [("noise", 10), ("dead", 0), ("dead", 90)]
    points += [("rank", 90), ("noise", "last"), ("reset", 10)]
    for budget, n_chosen in ((3.9, 0), (4, 1), (15, 2), (26, 3), (27, 4), (31, 5)):
        chosen = _affordable(points, costs, budget)
        assert len(chosen) == n_chosen, budget
        assert chosen == [one for one in points if one in chosen]
    assert _affordable(points, costs, 19) == [points[0], points[1], points[4]]
    assert _affordable(points, costs, 27) == points[:4]
    assert _affordable(points, costs, math.inf) == points
    assert {name for name, _ in WORTH} == set(MEASUREMENTS)


def test_what_the_budget_left_is_measured_later_to_the_same_values(
    run: Run, examination: dict[str, Any], tmp_path: Path
) -> None:
    whole, config, data = run
    network = unexamined(whole, tmp_path)
    finish_network(network, dataclasses.replace(config, rivals_budget=1.5), data, on_cpu())
    first = network.examination()
    assert first is not None
    assert list(first["noise"]) == ["10"]  # 16 of the 18 steps
    assert first["noise"] == examination["noise"]
    assert ["rank", "0"] in first["left"]
    assert network.lacks_measurements()
    network.weights(10).rename(tmp_path / "kept.pt")  # what was measured stays, without its weights
    network.save_examination(examine_network(network, config, data))
    found = network.examination()
    assert found is not None
    assert found["noise"] == examination["noise"]
    assert found["batchnorm"] == examination["batchnorm"]
    assert found["left"] == []
    assert not network.lacks_measurements()


def test_stopped_while_measuring_the_training_stays_and_the_rest_is_caught_up(
    run: Run, examination: dict[str, Any], tmp_path: Path
) -> None:
    whole, config, data = run
    network = unexamined(whole, tmp_path)

    def stop(n_done: int, n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish_network(network, config, data, on_cpu(), stop)
    assert network.is_finished
    assert network.examination() is None
    finish_network(network, config, data, on_cpu())
    assert network.examination() == examination


def test_without_kept_weights_the_end_alone_is_measured(
    run: Run, examination: dict[str, Any], tmp_path: Path
) -> None:
    """And with NaN in the weights nothing fails: None stands for what came out."""
    whole, config, data = run
    network = NetworkDir(tmp_path, whole.arch, whole.seed)
    weights = load_tensors(whole.weights("last"))
    weights["layer4.1.conv2.weight"].fill_(math.nan)
    torch.save(weights, network.weights("last"))
    found = examine_network(network, config, data)
    assert [name for name in MEASUREMENTS if found[name]] == ["dead", "batchnorm"]
    assert found["reset"] == found["rank"] == found["noise"] == {}
    assert found["dead"]["end"]["layer1"] == examination["dead"]["end"]["layer1"]
    table = found["batchnorm"]["end"]
    assert table["train"]["plain"]["running"] == dict.fromkeys(QUALITY)
    assert [name for name, nats in table["divergence"].items() if nats is None] == ["layer4.1.bn2"]
    json.dumps(found, allow_nan=False)


def test_a_large_set_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, config, data = run
    monkeypatch.setattr("gradflow.training.examination.MAX_IMAGES", 10)
    monkeypatch.setattr("gradflow.training.examination.WORTH", (("rank", "last"),))
    network = NetworkDir(tmp_path, whole.arch, whole.seed)
    torch.save(load_tensors(whole.weights("last")), network.weights("last"))
    assert examine_network(network, config, data)["n_images"] == 10


def test_a_defect_does_not_cost_the_training(
    prepare: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(gradflow.training.examination, "examine_network", fail)
    network, config, data = prepare(epochs=1)
    with pytest.warns(UserWarning, match=r"could not be measured \(ZeroDivisionError"):
        train(network, config, data)
    assert network.is_finished
    assert network.evaluation()["last"]["epoch"] == 0
    assert network.examination() is None


def test_once_measured_the_weights_make_room_for_those_of_other_networks(
    prepare: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One network in training may fill the budget; of two, each keeps a half in the end."""
    monkeypatch.setattr(gradflow.training.examination, "examine_network", lambda *_, **__: {})
    network, config, data = prepare(epochs=1)
    weights = build_network(network.arch, 3, config, seed=0).state_dict().values()
    budget = 3.5 * sum(tensor.nbytes for tensor in weights) / 2**30  # three, or one for each
    config = dataclasses.replace(config, arch="plain_18,resnet_18", checkpoint_budget=budget)
    train(network, config, data)
    assert network.weight_steps() == [0]
