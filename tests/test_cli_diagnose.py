"""`gradflow diagnose` and `gradflow compare` as a user gives them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from gradflow import Recorder
from tests.conftest import Command

pytestmark = pytest.mark.usefixtures("instrument")


def record(folder: Path, activation: type[nn.Module], seed: int, depth: int = 8) -> Path:
    """A small loop of a user's own, recorded into `folder`."""
    torch.manual_seed(seed)
    layers = [part for _ in range(depth) for part in (nn.Linear(16, 16, bias=False), activation())]
    model = nn.Sequential(*layers, nn.Linear(16, 2))
    if activation is nn.ReLU:
        for layer in layers[::2]:
            nn.init.orthogonal_(layer.weight, 2**0.5)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Recorder(model, optimizer, folder=folder):
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(32, 16)), torch.arange(32) % 2).backward()
            optimizer.step()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five seeds of a sigmoid network, whose gradients vanish, and of a ReLU network."""
    home = tmp_path_factory.mktemp("runs")
    return [
        record(home / f"{name}-s{seed}", activation, seed)
        for name, activation in (("sigmoid", nn.Sigmoid), ("relu", nn.ReLU))
        for seed in range(5)
    ]


def test_a_letter_for_loops_of_ones_own(runs: list[Path], tmp_path: Path, command: Command) -> None:
    picture = tmp_path / "v.png"
    brief = command("diagnose", *runs, "-o", picture).out.splitlines()
    assert len(brief) <= 10
    assert brief[1].startswith("Answer   present, cause not tested")
    out = command("diagnose", *runs, "--full", "-o", picture).out
    for said in (
        "Do the gradients of sigmoid vanish",
        "\nPresent, cause not tested: the gradients of sigmoid vanish",
        "\nWhy, and the rivals\n",
        "\nNext\n",
        "recognised 100% of the vanishing and exploding ones",
    ):
        assert said in out
    assert picture.exists()


def test_json_and_exit_codes_for_ci(runs: list[Path], command: Command) -> None:
    asked = ["--json", "--fail-on", "vanishing"]
    said = command("diagnose", *runs, *asked)
    verdict = json.loads(said.out)
    assert (said.code, verdict["accused"], verdict["reference"]) == (3, "sigmoid", "relu")
    assert verdict["links"][0]["status"] == "yes"
    said = command("diagnose", *runs, "--accused", "relu", "--reference", "sigmoid", *asked)
    assert (said.code, json.loads(said.out)["outcome"]) == (0, "refuted")
    said = command("diagnose", runs[0], *asked)
    verdict = json.loads(said.out)
    assert (said.code, verdict["outcome"]) == (3, "undetermined")
    assert "nothing can be concluded from fewer than 5" in verdict["sentences"][0]


def test_compare_shows_which_layers_differ(runs: list[Path], command: Command) -> None:
    said = command("compare", *runs, "--fail-on", "difference")
    assert said.code == 3
    assert "sigmoid over relu, 5 seeds" in said.out
    assert " *" in said.out
    found = json.loads(command("compare", *runs, "--json").out)
    assert {one["size"] for one in found} == {"output_gradient", "scale_invariant", "gradient_rms"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["diagnose", "nowhere"], "no folder nowhere"),
        (["diagnose", "."], "No records"),
        (["compare", "{first}"], "Expected two networks to compare"),
        (["diagnose", "{first}", "--accused", "vgg"], "Expected a network of sigmoid"),
        (["diagnose", "{first}", "{first}"], "every seed of sigmoid once"),
        (["diagnose"], "Run `gradflow train` first"),
    ],
)
def test_bad_input_says_what_to_do(
    arguments: list[str], says: str, runs: list[Path], tmp_path: Path, monkeypatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command(*(text.format(first=runs[0]) for text in arguments))
    assert (said.code, says in said.err) == (2, True)


@pytest.mark.usefixtures("without_figures")
def test_a_run_is_diagnosed_with_its_rivals(
    pictures: Path, tmp_path: Path, command: Command
) -> None:
    small = "--image-size 8 --width 0.125 --arch plain_18,resnet_18 --epochs 1 --batch-size 16"
    flags = f"--device cpu --wandb off --no-rivals --log-grads --out {tmp_path} --json"
    said = command("train", "--data", pictures, *small.split(), *flags.split())
    run = json.loads(said.out)["run"]
    for measure, is_measured in ([], False), (["--measure"], True):
        rivals = json.loads(command("diagnose", run, *measure, "--json").out)["rivals"]
        (status,) = (rival["status"] for rival in rivals if rival["key"] == "H7")
        assert (status != "not measured") == is_measured
    assert "verdict.png" in command("diagnose", run).out
