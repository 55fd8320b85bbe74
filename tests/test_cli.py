"""The commands as a user gives them: exit codes, stdout and stderr, errors that help."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gradflow
from gradflow.cli import main
from gradflow.cli.entry import COMMANDS, app
from gradflow.cli.options import EXAMPLES, GROUPS
from gradflow.controls import CaseResult, Gate
from gradflow.training.rundir import RunDir
from tests.conftest import Command

SMALL = ["--image-size", "8", "--width", "0.125", "--arch", "plain_18,resnet_18", "--epochs", "1"]
SMALL += ["--batch-size", "16", "--device", "cpu", "--wandb", "off", "--no-rivals"]


def test_train_prints_one_json_object_or_a_summary_a_person_reads(
    pictures: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = command("train", "--data", pictures, *SMALL, "--log-grads", "--out", tmp_path, "--json")
    summary = json.loads(said.out)
    assert [network["arch"] for network in summary["networks"]] == ["plain_18", "resnet_18"]
    assert summary["comparisons"][0]["p_value"] <= 1
    assert "plain_18-s0  epoch   1/1" in said.err
    assert "42 train, 6 validation, 12 test" in said.err
    run = Path(summary["run"])
    assert json.loads((run / "summary.json").read_text()) == summary
    figures = {path.name for path in (run / "figures").iterdir()}
    assert figures >= {"depth_profile.png", "heatmap-plain_18-s0.png"}
    index = (run / "index.md").read_text("utf-8")
    unsaid = {"index.md", ".lock"}
    there = {path.name for path in run.rglob("*") if path.suffix != ".parquet"}
    assert {name for name in there - unsaid - figures if name not in index} <= {"step-000000.pt"}

    monkeypatch.setattr("gradflow.present.plots.save", lambda figure, path: path)
    out = command("train", "--resume", run).out
    for words in ("accuracy", "input → output", "first/last convolution", f"--run {run}"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "lines", "expected"),
    [
        ([], "", (0.25, 10, 0.002, "cosine")),  # the digits' own
        (["--width", "1"], "", (1.0, 10, 0.002, "cosine")),
        ([], "width: 0.5\nschedule: step\n", (0.5, 10, 0.002, "step")),
        (["--epochs", "3"], "width: 0.5\nepochs: 4\n", (0.5, 3, 0.002, "cosine")),
        ([], "data: photographs\n", (1.0, 50, 6e-4, "step")),  # the study's
        (["--data", "cifar10"], "data: digits\n", (1.0, 50, 6e-4, "step")),
    ],
)
def test_a_data_sets_recipe_gives_way_to_the_file_and_the_file_to_the_command_line(
    arguments: list[str], lines: str, expected: tuple[float, int, float, str], tmp_path: Path
) -> None:
    if lines:
        (tmp_path / "config.yaml").write_text(lines)
        arguments = [*arguments, "--config", str(tmp_path / "config.yaml")]
    _, bound, _ = app.parse_args(["train", *arguments])
    config = bound.arguments["config"]
    assert (config.width, config.epochs, config.lr, config.schedule) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["train", "--lr", "-1"], "Expected `lr` to be from 1e-30 to 1e+30, but got -1"),
        (["train", "--precision", "fp8"], "fp8"),
        (["train", "--config", "missing.yaml"], "missing.yaml"),
        (["train", "--data", "no-such-data"], "no-such-data"),
        (["train", "--resume", "nowhere"], "Expected a run in nowhere"),
        (["train", "--resume", "nowhere", "--epochs", "3"], "no other options with --resume"),
        (["data", "no-such-data"], "no-such-data"),
        (["saliency", "missing.jpg", "--runs", "nowhere"], "missing.jpg"),
        (["bench", "--rounds", "0"], "`rounds` and `steps` from 1"),
        (["check"], "Expected a model, or --controls"),
        (["check", "plain_18"], "Expected the shape of one input"),
        (["check", "plain_18", "--input", "int:128"], "gradflow.check(model, ids)"),
        (["check", "plain_18", "--input", "1,32,32"], "does not accept input of shape 1,32,32"),
        (["check", "plain_81", "--input", "3,32,32"], "Did you mean plain_18"),
        (["check", "plain_18", "--controls"], "no model with --controls"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(
    arguments: list[str], message: str, command: Command, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command(*arguments)
    assert (said.code, message in said.err, said.out) == (2, True, "")


def test_data_audits_and_fails_on_bad_files(pictures: Path, command: Command) -> None:
    audit = json.loads(command("data", pictures, "--json").out)
    assert (audit["n_images"], audit["n_distinct"]) == (60, 60)
    (pictures / "red" / "copy.png").write_bytes((pictures / "blue" / "00.png").read_bytes())
    (pictures / "red" / "cut.png").write_bytes((pictures / "blue" / "00.png").read_bytes()[:100])
    said = command("data", pictures)
    assert said.code == 1
    for words in ("readable       61 of 62", "twins with different labels: 1", "red/cut.png"):
        assert words in said.out


@pytest.mark.parametrize(
    ("flags", "is_cut", "says"),
    [
        ([], True, "--on-bad skip"),
        (["--optimizer", "sgd", "--lr", "1e30"], False, "Lower the learning rate"),
    ],
    ids=["a bad file", "a loss that is not finite"],
)
def test_what_stops_a_training_ends_with_1(
    flags: list[str], is_cut: bool, says: str, pictures: Path, tmp_path: Path, command: Command
) -> None:
    if is_cut:
        (pictures / "red" / "cut.png").write_bytes(b"")
    said = command("train", "--data", pictures, *SMALL, *flags, "--out", tmp_path / "runs")
    assert (said.code, says in said.err) == (1, True)
    assert (tmp_path / "runs").exists() != is_cut


def test_bench_compares_with_the_bare_loop(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[int] = []
    advanced: list[str] = []

    @contextmanager
    def counted(_: Any, name: str, total: int) -> Iterator[tuple[Any, str]]:
        totals.append(total)
        yield SimpleNamespace(advance=advanced.append), name

    monkeypatch.setattr("gradflow.cli.bench.progress", counted)
    flags = ["--arch", "plain_18", "--image-size", "8", "--batch-size", "4", "--device", "cpu"]
    said = command("bench", *flags, "--rounds", "2", "--steps", "1", "--json")
    timings = json.loads(said.out)["timings"]
    assert timings[0]["ratio"] == 1
    assert all(len(timing["seconds_per_step"]) == 2 for timing in timings)
    assert totals == [len(advanced)] == [2 * (len(timings) - 1)], "the bar ends with the timing"


NETS = """
from torch import nn

def sigmoid():
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.Sigmoid()) for _ in range(8)]
    return nn.Sequential(*blocks, nn.Linear(32, 10))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which only the command puts on the path."""
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_check_says_what_happens_at_the_start(nets: str, command: Command) -> None:
    asked = ["check", f"{nets}:sigmoid", "--input", "32", "--draws", "2"]
    said = command(*asked)
    assert said.code == 0
    for words in ("vanishing from", "█", "first over last × ", "next  Try an"):
        assert words in said.out
    said = command(*asked, "--fail-on", "exploding", "--json")
    assert said.code == 0
    content = json.loads(said.out)
    assert content["model"] == f"{nets}:sigmoid"
    assert content["cause"] == "vanishing"
    assert content["paths"][0]["profiles"]["output_gradient"]["slope_decades_per_layer"] < -0.2
    assert command(*asked, "--fail-on", "vanishing", "--json").code == 3


@pytest.mark.parametrize(("n_right", "code"), [(20, 0), (3, 1)])
def test_check_controls_fails_where_gradflow_misses_a_known_truth(
    n_right: int, code: int, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    labels = Gate(
        (CaseResult("gain 1", "healthy", 20, 20), CaseResult("gain 2", "exploding", n_right, 20)), 0
    )
    monkeypatch.setattr("gradflow.controls.run_all", lambda progress: ([], labels))
    said = command("check", "--controls")
    assert (said.code, f"gain 2: {n_right} of 20 exploding" in said.out) == (code, True)
    said = command("check", "--controls", "--json")
    assert (said.code, json.loads(said.out)["gate"]["passed"]) == (code, code == 0)


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(pictures: Path, tmp_path: Path) -> None:
    flags: list[Any] = ["--data", pictures, *SMALL, "--out", tmp_path / "runs"]
    flags[flags.index("--epochs") + 1] = 500
    process = subprocess.Popen(
        [sys.executable, "-m", "gradflow", "train", *map(str, flags), "--log-grads"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*/*/checkpoint.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # while the checkpoint was just written, or the next is
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    assert "Continue with: gradflow train --resume" in log
    assert "Traceback" not in log
    (network, *_) = RunDir.newest(tmp_path / "runs").networks()
    assert len(network.trace()) > 0


def test_a_defect_is_not_dressed_up_as_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only errors that gradflow raises are shown without their traceback."""
    monkeypatch.setattr("gradflow.data.open_source", lambda *_, **__: int("not a number"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["data", "digits"])


def test_version(command: Command) -> None:
    assert command("--version").out.strip() == gradflow.__version__


def test_help_says_where_to_start_in_groups_and_with_examples_that_are_understood(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Start here:\n")
    assert len(out.split("Usage:")[0].strip().splitlines()) == 4
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    places = [out.index(f"─ {group} ─") for group in GROUPS.values()]
    assert places == sorted(places)
    explained = out[out.index("--min-delta") : out.index("--flip")].splitlines()[:-1]
    column = explained[0].index("By how") + len(out[: out.index("--min-delta")].splitlines()[-1])
    assert len(explained) > 1
    assert {len(line) - len(line[1:].lstrip()) for line in explained[1:]} == {column}
    assert {command.__name__.replace("_", "-") for command in COMMANDS} == set(EXAMPLES)
    for lines in EXAMPLES.values():
        for line in lines:
            app.parse_args(line.split()[1:], exit_on_error=False, print_error=False)
