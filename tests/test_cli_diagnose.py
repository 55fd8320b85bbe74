"""`gradflow diagnose` and `gradflow compare` as a user gives them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradflow import Recorder
from gradflow.cli import main
from gradflow.controls.gate import Gate
from gradflow.training import diagnosis

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate is tested on its own; here it has passed."""

    class Passed:
        hit_rate, false_alarm_rate, passed = 1.0, 0.0, True

        def to_json(self) -> dict[str, Any]:
            return {"hit_rate": 1.0, "false_alarm_rate": 0.0, "passed": True}

    monkeypatch.setattr(diagnosis, "load_gate", Passed)


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


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Five seeds of a sigmoid network, whose gradients vanish, and of a ReLU network."""
    return [
        str(record(tmp_path / f"{name}-s{seed}", activation, seed))
        for name, activation in (("sigmoid", nn.Sigmoid), ("relu", nn.ReLU))
        for seed in range(5)
    ]


def test_a_letter_for_loops_of_ones_own(runs: list[str], tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "v.png"
    assert main(["diagnose", *runs, "-o", str(picture)]) == 0
    brief = capsys.readouterr().out.splitlines()
    assert len(brief) <= 10
    assert brief[1].startswith("Answer   present, cause not tested")
    assert main(["diagnose", *runs, "--full", "-o", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "Do the gradients of sigmoid vanish" in out
    assert "\nPresent, cause not tested: the gradients of sigmoid vanish" in out
    for heading in ("Why, and the rivals", "Next"):
        assert f"\n{heading}\n" in out
    assert "recognised 100% of the vanishing and exploding ones" in out
    assert picture.exists()


def test_json_and_exit_codes_for_ci(runs: list[str], capsys: Capture) -> None:
    assert main(["diagnose", *runs, "--json", "--fail-on", "vanishing"]) == 3
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["accused"] == "sigmoid"
    assert verdict["reference"] == "relu"
    assert verdict["links"][0]["status"] == "yes"
    swapped = ["--accused", "relu", "--reference", "sigmoid"]
    assert main(["diagnose", *runs, *swapped, "--json", "--fail-on", "vanishing"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "refuted"


def test_one_seed_describes_and_says_so(runs: list[str], capsys: Capture) -> None:
    assert main(["diagnose", runs[0], "--json", "--fail-on", "vanishing"]) == 3
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["outcome"] == "undetermined"
    assert "nothing can be concluded from fewer than 5" in verdict["sentences"][0]


def test_compare_shows_which_layers_differ(runs: list[str], capsys: Capture) -> None:
    assert main(["compare", *runs, "--fail-on", "difference"]) == 3
    out = capsys.readouterr().out
    assert "sigmoid over relu, 5 seeds" in out
    assert " *" in out
    assert main(["compare", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
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
    arguments: list[str],
    says: str,
    runs: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main([text.format(first=runs[0]) for text in arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
def test_a_run_is_diagnosed_with_its_rivals(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    small = ["--image-size", "8", "--width", "0.125", "--arch", "plain_18,resnet_18"]
    small += ["--epochs", "1", "--batch-size", "16"]
    small += ["--device", "cpu", "--wandb", "off", "--no-rivals"]
    flags = ["--log-grads", "--out", str(tmp_path), "--json"]
    assert main(["train", "--data", str(pictures), *small, *flags]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    assert main(["diagnose", run, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert main(["diagnose", run, "--measure", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    status = {rival["key"]: rival["status"] for rival in before["rivals"]}
    assert status["H7"] == "not measured"
    assert {rival["key"]: rival["status"] for rival in after["rivals"]}["H7"] != "not measured"
    assert main(["diagnose", run]) == 0
    assert "verdict.png" in capsys.readouterr().out


def test_gate_is_what_a_verdict_takes_for_its_instrument() -> None:
    assert {"hit_rate", "false_alarm_rate", "passed", "to_json"} <= set(dir(Gate))
