"""Wrong options end with 2 and a sentence, before anything is made."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NUMBERS = ("image-size", "split-seed", "val-fraction", "test-fraction", "memory-budget", "width",
           "epochs", "batch-size", "lr", "weight-decay", "momentum", "label-smoothing", "warmup",
           "step-size", "gamma", "patience", "flip", "rotation", "every",
           "checkpoint-budget")  # fmt: skip


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", f"1{'0' * 40}", "-1", "x"])
@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_beyond_reason_is_refused_before_a_run_has_a_folder(
    option: str, value: str, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("train", f"--{option}={value}")
    assert said.code == 2, (option, value)
    assert option.replace("-", "") in said.err.replace("-", "").replace("_", "").lower()
    assert not Path("runs").exists()


OPTIONS: list[tuple[list[str], str]] = [
    (["train", "--seeds", "1000000000000"], "`seeds`"),
    (["train", "--seeds", "9" * 5000], "`seeds`"),
    (["train", "--seeds", "4294967296,"], "`seeds`"),
    (["train", "--seeds", "-1"], "`seeds`"),
    (["train", "--data", ""], "an empty one"),
    (["train", "--data", "~nosuchuser/pictures"], "nosuchuser"),
    (["train", "--data", "x" * 5000], "File name too long"),
    (["train", "--data", "a\0b"], "a\\x00b"),
    (["train", "--arch", "plain_18," * 3000], "`arch`"),
    (["train", "--intervene", "x(" * 3000], "intervention"),
    (["data", ""], "an empty one"),
    (["data", "~nosuchuser"], "nosuchuser"),
    (["data", "x" * 300], "File name too long"),
    (["check", "./f.py:x", "--input", "3"], "./f.py:x"),
    (["check", "..f:x", "--input", "3"], "..f:x"),
    (["check", ":x", "--input", "3"], ":x"),
    (["check", "mine:", "--input", "3"], "Expected"),
    (["check", "mine:make:more", "--input", "3"], "Expected"),
    (["check", "plain_18", "--input", "3,8,8", "--seed", "-1"], "`seed`"),
    (["check", "plain_18", "--input", "3,8,8", "--seed", "1" * 30], "`seed`"),
    (["check", "plain_18", "--input", "3,8,8", "--draws", "0"], "`draws`"),
    (["check", "plain_18", "--input", "3,8,8", "--draws", "1000000000000"], "`draws`"),
    (["check", "plain_18", "--input", "3,8,8", "--batch-size", "0"], "`batch_size`"),
    (["check", "plain_18", "--input", "3,8,8", "--batch-size", "1000000000000"], "`batch_size`"),
    (["check", "plain_18", "--input", ""], "--input"),
    (["check", "plain_18", "--input", "3,99999999999,8"], "`input_size`"),
    (["check", "mine:zero_d", "--input", "3"], "one row for each"),
    (["check", "mine:lazy", "--input", "3"], "mine:lazy"),
    (["check", "mine:sparse", "--input", "3"], "sparse"),
    (["check", "mine:exits", "--input", "3"], "it exited"),
    (["check", "exits:x", "--input", "3"], "it exited"),
    (["bench", "--rounds", "1000000000000"], "rounds"),
    (["bench", "--steps", "0"], "steps"),
    (["bench", "--image-size", "0"], "`image_size`"),
    (["diagnose", "missing"], "missing"),
    (["diagnose", "mine.py"], "mine.py"),
    (["diagnose", "x" * 300], "File name too long"),
    (["report", "missing"], "missing"),
    (["compare", "missing"], "missing"),
    (["report", "empty"], "No records"),
    (["study", "missing.yaml"], "missing.yaml"),
    (["study", "empty"], "empty"),
    (["saliency", "missing.png"], "missing.png"),
    (["saliency", "mine.py", "--run", "missing"], "missing"),
    (["saliency", "mine.py", "--trust", "-1"], "--trust"),
    (["train", "--resume", "empty"], "config.yaml"),
    (["train", "--resume", "mine.py"], "mine.py"),
    (["train", "--config", "empty"], "empty"),
    (["train", "--config", "x" * 300], "File name too long"),
    (["train", "--out", "mine.py"], "mine.py"),
    (["train", "--epochs", "1.5"], "--epochs to be a whole number"),
    (["train", "--image-size", "8.5"], "--image-size to be a whole number"),
    (["check", "plain_18", "--input", "3,8,8", "--seed", "1.55e1"], "--seed to be a whole number"),
    (["bench", "--rounds", ".5"], "--rounds to be a whole number"),
    (["watch", ""], "an empty one"),
    (["study", "study.yaml", "--data", ""], "an empty one"),
    (["study", "study.yaml", "--data", "nowhere"], "nowhere"),
    (["study", "study.yaml", "--slurm.timeout_min", "9"], "`slurm`"),
    (["study", "study.yaml", "--engine", "dask", "--address", "host"], "`address`"),
    (["study", "study.yaml", "--workers", "1000000000"], "`workers`"),
    (["report", "empty", " "], "an empty one"),
    (["diagnose", "-o", ""], "an empty one"),
    (["saliency", "x.png", "--runs", "loop"], "symbolic links"),
    (["study", "loop"], "symbolic links"),
    (["report", "empty", "-o", "a\0b.html"], "embedded null byte"),
    (["train", "--out", "a\0b"], "embedded null byte"),
    (["train", "--project", "a/b"], "`project`"),
    (["train", "--project", "\udcff"], "`project`"),
    (["train", "--intervene", "norm_bias(beta=1e99)"], "`beta`"),
    (["train", "--intervene", "accumulate(batches=1000000000000)"], "`batches`"),
    (["check", "mine:meta", "--input", "3"], "device meta"),
    (["check", "mine:large", "--input", "3"], "Out of memory"),
]

MINE = """
import torch
from torch import nn

class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
    def forward(self, x):
        return (self.scale * x).sum()

class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3).to_sparse())
    def forward(self, x):
        return torch.sparse.mm(self.weight, x.T).T

def zero_d(): return Zero()
def lazy(): return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
def sparse(): return Sparse()
def meta(): return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).to("meta")
def large(): return nn.Linear(10**8, 10**8)
def exits(): raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("arguments", "words"), OPTIONS, ids=[" ".join(arguments)[:50] for arguments, _ in OPTIONS]
)
def test_a_wrong_option_ends_with_a_sentence(
    arguments: list[str], words: str, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "exits"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(MINE)
    Path("exits.py").write_text("raise SystemExit(3)")
    Path("empty").mkdir()
    Path("loop").symlink_to("loop")
    Path("study.yaml").write_text("\n".join(f"{key}: {one}" for key, one in BEGIN.items()))
    said = command(*arguments)
    if "lazy" in arguments[1]:  # such a model can be checked
        assert said.code == 0
        return
    assert said.code in (1, 2)
    assert words in said.err
    assert len(said.err) < 2000, "a long value is not quoted whole"
    assert not Path("runs").exists()
    assert not Path("studies").exists()


# A wrong study file as the command says it; tests/studies/test_study_file.py has all kinds.
STUDIES = {
    "seeds: 4000000000": "a count up to 1000",
    "seeds: true": "a count up to 1000",
    "threads: 1000000000": "`threads`",
    "precision: .inf": "`precision`",
    "expected_gap: .nan": "`expected_gap`",
    "base: {data: 5}": "`data`",
    "base: {arch: plain_18, out: x}": "`base` without arch, out",
    "reference: {arch: plain_99}": "`reference`",
    "arms: [1]": "`arms`",
    "more: 1": "'more'",
    "arms: {'../../x': {set: {lr: 1}}}": "name",
}
BEGIN = {"question": "q", "base": "{data: digits, epochs: 1}", "accused": "plain_18",
         "reference": "resnet_18", "seeds": "1", "arms": "{a: {set: {lr: 0.1}}}"}  # fmt: skip


@pytest.mark.parametrize("line", STUDIES)
def test_a_wrong_study_file_is_refused_at_once(line: str, command: Any, tmp_path: Path) -> None:
    name, _, value = line.partition(": ")
    lines = [f"{key}: {one}" for key, one in (BEGIN | {name: value}).items()]
    file = tmp_path / "study.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")
    said = command("study", file, "--plan", "--out", tmp_path / "out")
    assert (said.code, STUDIES[line] in said.err) == (2, True), said.err
    assert not (tmp_path / "out").exists()


def program(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gradflow", *arguments], capture_output=True, text=True, **options
    )


def test_json_is_ascii_wherever_it_goes(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for flags in ([], ["--json"]):
        done = program("check", "plain_18", "--input", "3,8,8", "--draws", "1", *flags, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()


def test_the_smallest_width_of_a_residual_network_trains(pictures: Path, tmp_path: Path) -> None:
    """In channels_last its backward pass wrote beyond PyTorch's memory and killed the process."""
    done = program(
        "train", "--data", str(pictures), "--image-size", "8", "--arch", "resnet_18", "--width",
        "0.0625", "--epochs", "2", "--batch-size", "16", "--device", "cpu", "--wandb", "off",
        "--out", str(tmp_path), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("which", "one", "other"),
    [("diagnose", "--accused", "--reference"), ("compare", "--first", "--second")],
)
def test_a_network_is_not_compared_with_itself(
    which: str, one: str, other: str, run: Path, command: Any
) -> None:
    said = command(which, run, one, "plain_18", other, "plain_18")
    assert (said.code, "two different networks" in said.err) == (2, True)


def test_what_torchrun_left_in_the_environment_is_named(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    left = os.environ | {"WORLD_SIZE": "2", "RANK": "0"}
    done = program("train", "--data", "digits", "--device", "cpu", "--out", str(out), env=left)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "Unset WORLD_SIZE" in done.stderr
    assert not out.exists()
