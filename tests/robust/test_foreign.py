"""A run, a table or a name of somebody else is data: it reads and writes nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from torch import nn

from gradflow.present.markdown import markdown
from gradflow.present.report.content import collect
from gradflow.present.report.story import story
from gradflow.training import weights


@pytest.fixture(autouse=True)
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a report, and hold none of what is tested here."""
    monkeypatch.setattr("gradflow.present.report.story.charts", lambda report: [])


SECRET = "a file of the reader's"
HOSTILE = "x\x1b]0;owned\x07\x1b[2J\x9b31m\u202ey"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / ".bashrc"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def edit(run: Path, name: str, **fields: Any) -> None:
    path = run / name
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | fields), "utf-8")


def configure(run: Path, **fields: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | fields, sort_keys=False))


# --- pictures --------------------------------------------------------------------------------


def pictures_in(run: Path) -> int:
    return (run / "report.html").read_text("utf-8").count("data:image/jpeg")


def test_a_copied_run_shows_pictures_only_with_images(
    trained: Path, run: Path, command: Any
) -> None:
    data = yaml.safe_load((trained / "config.yaml").read_text())["data"]
    assert command("report", run, "--static").code == 0
    assert pictures_in(run) == 0
    assert "--images FOLDER" in (run / "report.html").read_text("utf-8")
    assert command("report", run, "--static", "--images", data).code == 0
    page = (run / "report.html").read_text("utf-8")
    wrong = sum(not right for name in ("plain_18-s0", "resnet_18-s0") for right in json.loads(
        (run / name / "evaluation.json").read_text())["last"]["test"]["is_right"])  # fmt: skip
    assert wrong
    assert pictures_in(run) > 0
    assert f"The pictures are those at {data}" in page


def test_a_run_of_ones_own_shows_them(trained: Path, command: Any, tmp_path: Path) -> None:
    assert command("report", trained, "--static", "-o", tmp_path / "r.html").code == 0
    assert "data:image/jpeg" in (tmp_path / "r.html").read_text("utf-8")


def test_a_mark_does_not_hold_for_other_data(trained: Path, run: Path) -> None:
    """A run that was lent and comes back with another folder in its config."""
    assert collect([trained]).images
    config = trained / "config.yaml"
    before = config.read_text()
    try:
        config.write_text(re.sub("^data: .*$", "data: /home", before, flags=re.M))
        assert not collect([trained]).images
    finally:
        config.write_text(before)


# --- links -----------------------------------------------------------------------------------

LINKS = {
    "report.html": ("report", "--static"),
    "report.md": ("report", "--static"),
    "report.json": ("report", "--static"),
    "report.tmp": ("report", "--static"),
    "index.md": ("report", "--static"),
    "figures/verdict.png": ("diagnose",),
}


@pytest.mark.parametrize("link", LINKS)
def test_a_link_in_a_run_is_replaced_and_not_followed(
    link: str, run: Path, secret: Path, command: Any
) -> None:
    (run / link).unlink(missing_ok=True)
    (run / link).symlink_to(secret)
    which, *flags = LINKS[link]
    assert command(which, run, *flags).code in (0, 2)
    assert secret.read_text() == SECRET


@pytest.mark.parametrize("name", ["figures", "saliency", "plain_18-s0",
                                  "plain_18-s0/records", "tensorboard"])  # fmt: skip
@pytest.mark.parametrize("which", ["report", "diagnose"])
def test_a_folder_that_is_a_link_is_refused(
    which: str, name: str, run: Path, secret: Path, command: Any
) -> None:
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).symlink_to(secret.parent)
    said = command(which, run)
    assert (said.code, "is a link to" in said.err) == (2, True)
    assert list(secret.parent.iterdir()) == [secret]


@pytest.mark.parametrize("name", ["summary.tmp", "summary.json", "plain_18-s0/history.tmp",
                                  "plain_18-s0/history.json", "plain_18-s0/best.tmp",
                                  "plain_18-s0/best.pt", "index.md",
                                  "plain_18-s0/records/.part-000000000.parquet"])  # fmt: skip
def test_training_writes_through_no_link(name: str, run: Path, secret: Path, command: Any) -> None:
    (run / "summary.json").unlink()
    shutil.rmtree(run / "plain_18-s0")
    (run / "plain_18-s0" / "records").mkdir(parents=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    assert command("train", "--resume", run, "--json").code in (0, 2)
    assert secret.read_text() == SECRET


def test_a_picture_behind_a_link_is_not_shown(run: Path, tmp_path: Path, command: Any) -> None:
    private = tmp_path / "private.png"
    Image.new("RGB", (8, 8), "red").save(private)
    (run / "figures" / "saliency-gradcam-mean.png").symlink_to(private)
    assert command("report", run, "--static").code == 0
    assert "saliency-gradcam-mean" not in (run / "report.md").read_text("utf-8")
    assert not list((run / "figures").glob("saliency-*.svg"))


# --- output never replaces input -------------------------------------------------------------


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
    Image.new("RGB", (8, 8), "red").save("in.png")
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


# --- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "link"),
    [
        *((name, "") for name in ("../other/red.png", "/etc/passwd", "a/../../other/red.png",
                                  "{home}/other/red.png")),
        ("in/red.png", "other"),
        ("in", "other/red.png"),
    ],
)  # fmt: skip
def test_a_table_reaches_no_file_outside_its_folder(
    name: str, link: str, tmp_path: Path, command: Any
) -> None:
    folder = tmp_path / "data"
    for place in (folder / "a", tmp_path / "other"):
        place.mkdir(parents=True)
    for place in (folder, tmp_path / "other"):
        for colour in ("red", "blue"):
            Image.new("RGB", (8, 8), colour).save(place / f"{colour}.png")
    if link:
        (folder / "in").symlink_to(tmp_path / link)
    name = name.format(home=tmp_path)
    (folder / "labels.csv").write_text(f"filename,label\nred.png,a\nblue.png,b\n{name},a\n")
    for given in (folder, folder / "labels.csv"):
        said = command("data", given)
        assert (said.code, "--allow-outside" in said.err) == (2, True)
        assert command("data", given, "--allow-outside").code in (0, 1)


@pytest.mark.parametrize("name", ["labels.csv", "red/x.png", "red/notes.txt"])
@pytest.mark.parametrize("leads_to", ["/dev/zero", "a pipe"])
def test_what_never_ends_is_not_read(
    name: str, leads_to: str, pictures: Path, command: Any
) -> None:
    if leads_to == "a pipe":
        os.mkfifo(pictures / name)
    else:
        (pictures / name).symlink_to(leads_to)
    assert command("data", pictures).code == 0


# --- what is built -----------------------------------------------------------------------------


def test_a_network_takes_no_memory_until_its_weights_are_known_to_fit(
    run: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 GB, which the 4 channels of the weights do not fill."""
    load, built = weights.load_weights, []

    def spied(model: nn.Module, path: Path, **more: Any) -> None:
        built.extend(tensor.is_meta for tensor in model.state_dict().values())
        load(model, path, **more)

    monkeypatch.setattr(weights, "load_weights", spied)
    configure(run, width=16.0)
    said = command("saliency", picture(run), "--run", run)
    assert (said.code, "plain_18-s0/best.pt" in said.err) == (2, True)
    assert built
    assert all(built)


def test_pictures_of_a_size_that_fills_the_memory_are_refused(run: Path, command: Any) -> None:
    """The outputs of the first convolution alone: 4 channels of 4096 × 4096 numbers, 0.25 GiB."""
    configure(run, image_size=4096)
    said = command("saliency", picture(run), "--run", run)
    assert (said.code, "at most 2 GiB" in said.err) == (2, True)


def picture(run: Path) -> Path:
    path = run.parent / "mine.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


# --- what a terminal and a page obey -----------------------------------------------------------

OBEYED = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]|\x1b(?!\\[[0-9;]*m)")


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
        Image.new("RGB", (8, 8), label).save(folder / f"{label}.png")
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


CUT_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06"


def test_what_a_decoder_warns_of_names_the_file_and_only_some_of_many(
    pictures: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*warning: Any) -> None:  # as without pytest, which keeps them
        sys.stderr.write(warnings.formatwarning(*warning[:4]))

    monkeypatch.setattr(warnings, "showwarning", show)
    for i in range(12):
        Image.new("RGB", (9, 9), (i, 9, 9)).save(pictures / "red" / f"odd{i}.jpg", exif=CUT_EXIF)
    said = command("data", pictures)
    named = re.findall(r"^gradflow: .*red/odd\d+\.jpg: Corrupt EXIF data", said.err, re.M)
    assert (said.code, len(named), said.err.count("and more such files")) == (0, 10, 1)


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
