"""Output replaces nothing but output, is whole or not there, and a run has one writer."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.robust.foreign import SECRET, picture

pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.mark.parametrize(
    ("output", "kept"),
    [
        ("summary.html", "summary.json"),
        ("data", "data.json"),
        ("environment.htm", "environment.json"),
        ("plain_18-s0/history", "plain_18-s0/history.json"),
        ("../notes.html", "../notes.md"),
        ("../thesis.html", "../thesis.html"),
    ],
)
def test_a_report_replaces_nothing_but_a_report(
    output: str, kept: str, run: Path, command: Any
) -> None:
    if kept.startswith(".."):
        (run / kept).write_text(SECRET)
    before = (run / kept).read_bytes()
    said = command("report", run, "--static", "-o", run / output)
    assert (said.code, "no part of one" in said.err) == (2, True)
    assert (run / kept).read_bytes() == before


def test_a_report_replaces_its_own(run: Path, command: Any, tmp_path: Path) -> None:
    for _ in range(2):
        assert command("report", run, "--static", "-o", tmp_path / "mine.html").code == 0


@pytest.mark.parametrize(
    ("output", "kept"),
    [*((name, "in.png") for name in ("in.png", "./in.png", "link.png", "in")),
     ("out.png", "out.json")],  # the table beside the picture
)  # fmt: skip
def test_saliency_replaces_nothing_but_its_own(
    output: str, kept: str, run: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(Path("in.png"))
    Path("link.png").symlink_to("in.png")
    Path("out.json").write_text(SECRET)
    before = Path(kept).read_bytes()
    said = command("saliency", "in.png", "--run", run, "-o", output, "--trust", "0")
    assert said.code == 2 or kept == "in.png"
    assert Path(kept).read_bytes() == before


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "jpg"])
def test_the_figure_of_a_verdict_replaces_nothing_but_its_own(
    ending: str, run: Path, tmp_path: Path, command: Any
) -> None:
    output = tmp_path / f"mine.{ending}"
    for _ in range(2):
        assert command("diagnose", run, "-o", output).code == 0
    output.write_text(SECRET)
    said = command("diagnose", run, "-o", output)
    assert (said.code, output.read_text()) == (2, SECRET)


def test_saliency_of_a_folder_is_not_written_over_it(
    run: Path, pictures: Path, command: Any
) -> None:
    folder = pictures / "red"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = command("saliency", folder, "--run", run, "-o", folder, "--trust", "0")
    assert said.code == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_report_is_whole_or_not_there(
    run: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills while the page is written."""

    def full(self: Path, text: str, **options: Any) -> int:
        with self.open("w", encoding="utf-8") as file:
            file.write(text[:1000])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    said = command("report", run, "--static")
    assert (said.code, "No space left" in said.err) == (1, True)
    assert not [
        path for path in run.iterdir() if "report." in path.name or "unfinished" in path.name
    ]


# --- one writer --------------------------------------------------------------------------------


HOLD = """
import sys, time
from pathlib import Path
from gradflow.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_resume_is_refused_and_a_dead_process_is_taken_over(
    run: Path, command: Any
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        said = command("train", "--resume", run)
        assert (said.code, f"process {holder.pid} on {os.uname().nodename}" in said.err) == (
            1,
            True,
        )
    finally:
        holder.kill()
        holder.communicate()
    said = command("train", "--resume", run, "--json")
    assert said.code == 0
    assert f"Taken over: process {holder.pid} on" in said.err
    assert "Taken over" not in command("train", "--resume", run, "--json").err
