"""Every command ends with one of the exit codes of the documentation's table."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradflow.cli import entry, options

NAMES = [command.__name__.replace("_", "-") for command in entry.COMMANDS]
COMPLETE = {
    "train": [], "data": ["digits"], "saliency": ["--split", "test"], "check": ["--controls"],
    "diagnose": [], "compare": [], "report": [], "study": ["x.yaml"],
    "wandb-panels": ["--entity", "me"], "bench": [], "watch": [],
}  # fmt: skip


def ending(end: Callable[[], int]) -> Callable[..., Any]:
    """In place of `parse_args`: the command is `end`, once its options are read."""

    def parse(*arguments: Any, **more: Any) -> Any:
        command, bound, ignored = original(*arguments, **more)
        return lambda *args, **kwargs: end(), bound, ignored

    original = type(entry.app).parse_args
    return parse


def raising(error: BaseException) -> Callable[[], int]:
    def end() -> int:
        raise error

    return end


def test_the_table_of_the_documentation_is_that_of_the_program() -> None:
    page = (Path(__file__).parents[2] / "docs/command-line.md").read_text("utf-8")
    codes = {options.OK, options.FAILED, options.USAGE, options.JUDGED, options.INTERRUPTED}
    assert set(map(int, re.findall(r"^\| (\d+) \|", page, re.M))) == codes
    assert set(COMPLETE) == set(NAMES)


ENDS: dict[str, tuple[Callable[[], int], int]] = {
    "done": (lambda: 0, 0),
    "found": (lambda: 3, 3),
    "a full disk": (raising(OSError(28, "No space left on device", "x")), 1),
    "a folder that vanished": (raising(FileNotFoundError(2, "No such file", "x")), 1),
    "Ctrl-C": (raising(KeyboardInterrupt()), 130),
    "code that exits": (raising(SystemExit(3)), 1),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_command_ends_with_a_documented_code(
    name: str, how: str, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, code = ENDS[how]
    monkeypatch.setattr(type(entry.app), "parse_args", ending(end))
    said = command(name, *COMPLETE[name])
    assert said.code == code
    assert bool(said.err) == (code not in (0, 3))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_wrong_usage(name: str, command: Any) -> None:
    assert command(name, *COMPLETE[name], "--nonsense").code == 2


def test_what_was_found_ends_with_3(command: Any, tmp_path: Path) -> None:
    """Sigmoids in a row: the gradient vanishes."""
    (tmp_path / "deep.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Sigmoid())\n"
        "                                   for _ in range(9)])\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(str(tmp_path))
        found = command("check", "deep:make", "--input", "32", "--fail-on", "vanishing")
    assert found.code == 3


@pytest.mark.parametrize("line", ["train --help", "check plain_18 --input 3,8,8 --draws 1"])
def test_a_reader_that_has_gone_is_told_nothing(line: str) -> None:
    """As `gradflow train --help | head -1`: rich meets the closed pipe before gradflow does."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "gradflow", *line.split()],
        stdout=writing, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_none_to_write_to(closed: str, tmp_path: Path) -> None:
    """Else the next file that is opened would get what is printed."""
    line = f"{sys.executable} -m gradflow data digits --json {closed}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


STARTING = """
import builtins, sys
load = builtins.__import__

def stopped(name, *arguments, **more):
    if name == "gradflow.cli.entry":
        raise KeyboardInterrupt
    return load(name, *arguments, **more)

builtins.__import__ = stopped
from gradflow.cli import main
sys.exit(main(["data", "digits"]))
"""


def test_ctrl_c_while_the_program_starts_ends_with_130() -> None:
    done = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "gradflow: Stopped.\n")
