"""What a run, a name or an error holds is shown, and neither a terminal nor a page obeys it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gradflow.present.markdown import markdown
from gradflow.present.report.content import collect
from gradflow.present.report.story import story
from tests.robust.foreign import configure, picture

pytestmark = pytest.mark.usefixtures("no_charts")

HOSTILE = "x\x1b]0;owned\x07\x1b[2J\x9b31m\u202ey"
OBEYED = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]|\x1b(?!\\[[0-9;]*m)")


def edit(run: Path, name: str, **fields: Any) -> None:
    path = run / name
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | fields), "utf-8")


@pytest.mark.parametrize("which", ["diagnose", "report", "compare"])
def test_no_control_character_of_a_run_reaches_the_terminal(
    which: str, run: Path, command: Any
) -> None:
    edit(run, "environment.json", device=HOSTILE, command=["gradflow", HOSTILE])
    configure(run, project=HOSTILE)
    said = command(which, run, *(["--static"] if which == "report" else []))
    assert said.code == 0, said.err
    assert not OBEYED.search(said.out + said.err)


@pytest.mark.parametrize("command_line", [
    ["train", "--out", f"/dev/null/{HOSTILE}"], ["data", HOSTILE], ["report", HOSTILE],
    ["diagnose", HOSTILE], ["saliency", HOSTILE], ["check", HOSTILE, "--input", "3"],
    ["study", HOSTILE], ["train", "--config", HOSTILE], ["train", "--resume", HOSTILE],
])  # fmt: skip
def test_no_control_character_of_an_error_reaches_the_terminal(
    command_line: list[str], command: Any
) -> None:
    said = command(*command_line)
    assert said.code in (1, 2)
    assert not OBEYED.search(said.out + said.err)


def test_no_control_character_of_names_of_files_reaches_the_terminal(
    tmp_path: Path, command: Any
) -> None:
    for label in ("red", "blue"):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        picture(folder / f"{label}.png", label)
    (tmp_path / "data" / "red" / f"{HOSTILE}.png").write_bytes(b"no picture")
    said = command("data", tmp_path / "data", "--all")
    assert said.code == 1
    assert not OBEYED.search(said.out + said.err)
    folder.rename(folder.with_name(HOSTILE))
    said = command("data", tmp_path / "data", "--all")
    assert not OBEYED.search(said.out + said.err)


FENCE = "```\n\n<script>alert(1)</script>\n\n```"


def test_no_value_leaves_its_place_in_markdown(run: Path) -> None:
    edit(run, "environment.json", device=FENCE, command=["gradflow", f"train\nrm -rf ~\n{FENCE}"])
    configure(run, project=FENCE)
    written = markdown(story(collect([run]), []), "figures")
    outside, fence = [], ""
    for line in written.splitlines():
        mark = re.match("`{3,}", line)
        if mark and (not fence or line == fence):
            fence = "" if fence else mark[0]
        elif not fence:
            outside.append(line)
    assert not fence, "every fence is closed"
    assert not any("<script>" in line or line.startswith("rm ") for line in outside)
    assert not re.search("^rm -rf", written, re.M)
