"""A run, a table or a name of somebody else is data: it makes nothing else be read or written."""

import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from torch import nn

from gradflow.present.report.content import collect
from gradflow.training import weights
from tests.robust.foreign import SECRET, configure, picture

pytestmark = pytest.mark.usefixtures("no_charts")


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
    private = picture(tmp_path / "private.png")
    (run / "figures" / "saliency-gradcam-mean.png").symlink_to(private)
    assert command("report", run, "--static").code == 0
    assert "saliency-gradcam-mean" not in (run / "report.md").read_text("utf-8")
    assert not list((run / "figures").glob("saliency-*.svg"))


# --- tables and folders of pictures ----------------------------------------------------------


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
            picture(place / f"{colour}.png", colour)
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
    said = command("saliency", picture(run.parent / "mine.png"), "--run", run)
    assert (said.code, "plain_18-s0/best.pt" in said.err) == (2, True)
    assert built
    assert all(built)


def test_pictures_of_a_size_that_fills_the_memory_are_refused(run: Path, command: Any) -> None:
    """The outputs of the first convolution alone: 4 channels of 4096 × 4096 numbers, 0.25 GiB."""
    configure(run, image_size=4096)
    said = command("saliency", picture(run.parent / "mine.png"), "--run", run)
    assert (said.code, "at most 2 GiB" in said.err) == (2, True)
