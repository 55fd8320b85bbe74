"""The report's pictures: maps with what their checks say, and mistakes, by no other photograph."""

import base64
import html
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from gradflow.present.report import page
from gradflow.present.report.content import Report, collect
from gradflow.present.report.numbers import mistakes, photos_of_test_set
from gradflow.present.report.saliency import Maps, saliency_pictures
from gradflow.present.report.story import story
from gradflow.training.rundir import RunDir


@pytest.fixture
def explained(without_records: Path) -> RunDir:
    """The same run as after `gradflow saliency --split test`, with a picture wider than a page."""
    made = RunDir.open(without_records)
    made.figures.mkdir()
    for shows, width in (("mean", 2000), ("plain_18-s0", 300)):
        for ending, color in (("", "#fff"), ("-dark", "#15181b")):
            path = made.figures / f"saliency-gradcam-{shows}{ending}.png"
            picture = Image.new("RGB", (width, width // 2), color)
            picture.save(path)
            path.with_suffix(".svg").write_text("<svg/>")
    picture.save(made.figures / "saliency-integrated-gradients-plain_18-s0.png")  # an older one
    content = {
        "networks": dict.fromkeys(("plain_18-s0", "resnet_18-s0"), {"layer": "layer4.1"}),
        "trust": {
            "plain_18-s0": trust(randomisation=False, insertion_minus_deletion=False),
            "resnet_18-s0": trust(),
        },
    }
    made.save_saliency("gradcam", content, {})
    return made


CHECKS = ("randomisation", "infidelity", "sensitivity", "insertion_minus_deletion")


def trust(**passed: bool | None) -> dict[str, Any]:
    of = dict.fromkeys(CHECKS, True) | passed
    return {"checks": {name: {"value": 0.1, "passed": one} for name, one in of.items()}}


def test_maps_stand_in_the_page_with_how_to_read_them_and_whether_to_believe_them(
    explained: RunDir,
) -> None:
    report = collect([explained.path])
    path = explained.path / "my page.html"
    page.write(report, [], path, static=True)
    text = path.read_text("utf-8")
    section = text[text.index('<section id="saliency">') : text.index('<section id="data">')]
    fails = "gradcam at layer4.1 on plain_18-s0 fails: randomisation, insertion minus deletion."
    passes = "gradcam at layer4.1 on resnet_18-s0 passes its checks."
    assert re.findall("<h3>(.+?)</h3>", section) == [
        "Grad-CAM: the mean map of each class of plain_18-s0 and resnet_18-s0",
        "Grad-CAM: what plain_18-s0 looks at",
        "Integrated gradients: what plain_18-s0 looks at",
    ]
    captions = re.findall("<figcaption>(.+?)</figcaption>", section)
    assert (fails in captions[0], passes in captions[0]) == (True, True)
    assert (fails in captions[1], passes in captions[1]) == (True, False)
    assert captions[2].endswith("No check of integrated-gradients on plain_18-s0 is known.")
    found = [embedded(one) for one in re.findall('"(data:image/webp[^"]+)"', section)]
    assert [(one.format, one.size) for one in found] == [
        ("WEBP", size) for size in ((1600, 800), (1600, 800), (300, 150), (300, 150), (300, 150))
    ]
    dark, light = (one.convert("L").getpixel((9, 9)) for one in found[:2])
    assert (dark < 50, light > 200) == (True, True)
    assert section.count('media="(prefers-color-scheme: dark)"') == 2, "where there is a dark one"
    written = path.with_suffix(".md").read_text("utf-8")
    below = written[written.index("## Saliency") :]
    folder = explained.path / "my page-figures"
    links = [unquote(one) for one in re.findall(r"!\[.*?\]\((\S+)\)", below)]
    assert [(folder.parent / link).exists() for link in links] == [True] * 3
    assert {file.name for file in folder.glob("saliency-*")} == {
        file.name for file in explained.figures.glob("saliency-*")
    }
    assert fails in below
    rows = json.loads(path.with_suffix(".json").read_text("utf-8"))["saliency"]
    assert [(one["method"], one["network"], one["layer"], one["answer"]) for one in rows] == [
        ("gradcam", "plain_18-s0", "layer4.1", fails),
        ("gradcam", "resnet_18-s0", "layer4.1", passes),
        ("integrated-gradients", "plain_18-s0", None,
         "No check of integrated-gradients on plain_18-s0 is known."),
    ]  # fmt: skip
    assert rows[0]["trust"]["checks"]["randomisation"]["passed"] is False


def test_what_could_not_be_measured_is_not_said_to_pass() -> None:
    nothing = Maps("occlusion", "net-s0", None, trust(**dict.fromkeys(CHECKS)))
    assert nothing.answer == "occlusion on net-s0 could not be checked."
    part = Maps("occlusion", "net-s0", None, trust(infidelity=None))
    assert part.answer == (
        "occlusion on net-s0 passes its checks. Could not be measured: infidelity."
    )


def test_pictures_of_two_runs_do_not_overwrite_each_other(
    explained: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(explained.path, tmp_path / "other")
    found = saliency_pictures([explained, RunDir.open(tmp_path / "other")])
    assert len({one.key for one in found}) == len(found) == 6


def test_a_worst_mistake_is_shown_by_the_picture_that_was_taken_for_another_class(
    report: Report, text: str
) -> None:
    photos, where = photos_of_test_set(report)
    shown = mistakes(report, photos)
    assert shown
    assert where.startswith("The pictures are those at ")
    test = report.of("plain_18")[0].evaluation["last"]["test"]
    sure = np.max(test["probabilities"], axis=1) * ~np.array(test["is_right"])
    position = report.data["split"]["indices"]["test"][int(sure.argmax())]
    table = Path(report.config["data"])
    name, label = table.read_text("utf-8").splitlines()[1 + position].split(",")
    worst = shown[0]
    assert (worst["network"], worst["label"]) == ("plain_18", label)
    assert worst["picture"] in text
    tile = embedded(worst["picture"])
    assert (tile.format, tile.size) == ("JPEG", (128, 128)), "8 pixels, 16 times"
    with Image.open(table.parent / name) as photo:
        expected = np.asarray(photo.convert("L"), float)
    found = np.asarray(tile.convert("L"), float).reshape(8, 16, 8, 16).mean(axis=(1, 3))
    assert np.abs(found - expected).max() < 10


@pytest.mark.parametrize("keeps_names", [True, False], ids=["names kept", "older run"])
@pytest.mark.parametrize("change", ["removed", "added", "gone"])
def test_no_other_picture_is_shown_for_a_mistake_where_the_images_have_changed(
    report: Report, tmp_path: Path, change: str, keeps_names: bool
) -> None:
    """A split counts the images: with one more or less, every number means another picture."""
    data = tmp_path / "data"
    shutil.copytree(Path(report.config["data"]).parent, data)
    table = data / "labels.csv"
    lines = table.read_text("utf-8").splitlines()
    if change == "removed":
        table.write_text("\n".join([lines[0], *lines[2:]]), "utf-8")
    elif change == "added":
        first = lines[1].split(",")
        shutil.copy(data / first[0], data / "new.png")
        table.write_text("\n".join([lines[0], f"new.png,{first[1]}", *lines[1:]]), "utf-8")
    else:
        shutil.rmtree(data)
    facts = {key: one for key, one in report.data.items() if keeps_names or key != "keys_sha256"}
    elsewhere = replace(report, images=str(table), data=facts)
    written = html.unescape(page.html(story(elsewhere, []), static=True))
    assert "taken for" in written
    assert "image/jpeg" not in written
    expected = "are no longer at" if change == "gone" else "are not those of the training"
    assert expected in written


def embedded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
