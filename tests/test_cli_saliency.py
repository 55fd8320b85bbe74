"""`gradflow saliency` as a user gives it: a picture, a folder, the test set, and mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

import gradflow
from gradflow.data import BadImage
from gradflow.training.config import TrainConfig
from gradflow.training.images import load_data
from gradflow.training.rundir import RunDir
from gradflow.training.weights import build_network, save_tensors
from tests.conftest import Command

QUICK = ["--method", "gradient", "--trust", "0"]


@pytest.fixture
def run(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run of two networks on the small pictures, whose weights are those of the start.

    It is the only one of `runs` in the current folder, as are the pictures.
    """
    monkeypatch.chdir(tmp_path)
    config, data = load_data(
        TrainConfig(data=str(pictures), image_size=8, width=0.125, arch="plain_18,resnet_18")
    )
    made = RunDir.create(config)
    made.save_config(config)
    made.save_data(data.to_json())
    for arch in config.networks:
        model = build_network(arch, len(data.class_names), config, seed=0)
        save_tensors(model.state_dict(), made.network(arch, 0).weights("best"))
    return made


IMAGE = Path("pictures", "green", "03.png")


def scores(path: str) -> dict:
    return json.loads(Path(path).read_text("utf-8"))


@pytest.mark.usefixtures("run")
def test_saliency_of_the_newest_run(command: Command) -> None:
    out = command("saliency", IMAGE).out
    for words in ("plain_18-s0", "green", "gradcam at ", "passes if", "03-saliency.json"):
        assert words in out
    with Image.open("03-saliency.png") as picture:
        assert min(picture.size) > 300
    said = command("saliency", IMAGE, *QUICK, "--classes", "1", "-o", "new/x.png", "--json")
    content = json.loads(said.out)
    assert content == scores("new/x.json")
    assert content["trust"] == {}
    (picture,) = content["pictures"]
    for network in picture["networks"].values():
        assert sum(network["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert network["map_classes"] == [network["predicted"]]
        assert np.load(network["maps"]).shape == (1, 8, 8)


@pytest.mark.parametrize(("asked", "written"), [("maps", "maps.png"), ("maps.jpg", "maps.jpg")])
@pytest.mark.usefixtures("run")
def test_the_picture_stands_where_the_command_says(
    asked: str, written: str, command: Command
) -> None:
    assert f"picture  {written}\n" in command("saliency", IMAGE, "-o", asked, *QUICK).out
    (picture,) = scores("maps.json")["pictures"]
    assert picture["picture"] == written
    with Image.open(written) as made:
        assert min(made.size) > 300


@pytest.mark.usefixtures("run")
def test_the_terminal_says_how_far_integrated_gradients_are_off(command: Command) -> None:
    out = command("saliency", IMAGE, "--method", "integrated-gradients", "--trust", "0").out
    (picture,) = scores("03-saliency.json")["pictures"]
    for name, one in picture["networks"].items():
        deltas, changes = one["convergence_deltas"], one["logit_changes"]
        worst = max(abs(a / b) for a, b in zip(deltas, changes, strict=True))
        said = "the sum of a map misses the change of its logit by at most"
        assert f"{name}: integrated-gradients: {said} {100 * worst:.1f} %\n" in out


@pytest.mark.usefixtures("run")
def test_saliency_of_a_folder_goes_on_after_a_bad_file(command: Command) -> None:
    folder = IMAGE.parent
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()
    (folder / "00-cut.png").write_bytes(b"")  # the first of all
    asked = ["saliency", folder, "-o", "maps", "--trust", "1"]
    said = command(*asked)
    assert said.code == 0
    assert "cut.png: not an image in a format that Pillow can read" in said.err
    assert "\nplain_18-s0: gradcam at " in said.out
    assert "passes if" in said.out
    content = scores("maps/saliency.json")
    assert [Path(one["file"]).name for one in content["left_out"]] == ["00-cut.png"]
    assert len(content["pictures"]) == 3
    assert {path.suffix for path in Path("maps").iterdir()} == {".png", ".npy", ".json"}
    assert len(list(Path("maps").glob("*.npy"))) == 6
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    said = command(*asked)
    assert (said.code, "Expected a readable picture" in said.err) == (2, True)


@pytest.mark.parametrize("name", ["holiday [raw]", "a[", "x :cat: [bold]"])
def test_a_path_is_printed_as_it_is(name: str, run: RunDir, command: Command) -> None:
    folder = Path(name) / "b]"  # `a[/b]` closes a tag that was never opened
    folder.mkdir(parents=True)
    IMAGE.rename(folder / "03.png")
    (folder / "cut.png").write_bytes(b"")
    run.path.rename(folder / "run")
    flags = ["--run", folder / "run", *QUICK]
    said = command("saliency", folder, "-o", folder / "maps", *flags)
    assert f"run      {folder}/run\n" in said.out
    assert f"picture  {folder}/maps\n" in said.out
    assert f"Left out: {folder}/cut.png: " in said.err
    said = command("saliency", folder / "none.png", *flags)
    assert (said.code, f"nothing at {folder}/none.png" in said.err) == (2, True)


def test_saliency_of_the_test_set_goes_to_the_run(run: RunDir, command: Command) -> None:
    said = command("saliency", "--split", "test", "--method", "guided-backprop")
    assert "test pictures named right" in said.out
    assert "it fails randomisation checks" in said.err
    names = [path.name for path in run.saliency_figures()]
    assert names == [
        f"saliency-guided-backprop-{end}.png" for end in ("mean", "plain_18-s0", "resnet_18-s0")
    ]
    printed = "".join(said.out.split())  # a long path goes over several lines
    assert [name for name in names if f"picture{run.figures}/{name}" in printed] == names
    written = sorted(path.name for path in run.figures.iterdir())
    endings = (".svg", ".png", "-dark.svg", "-dark.png")
    assert written == sorted(name.replace(".png", end) for name in names for end in endings)
    for path in run.saliency_figures():
        for stem, paper in ((path.stem, "#ffffff"), (f"{path.stem}-dark", "#15181b")):
            with Image.open(path.with_stem(stem)) as picture:
                assert picture.convert("RGB").getpixel((0, 0)) == ImageColor.getrgb(paper)
    content = run.saliency("guided-backprop")
    assert content is not None
    assert content["trust"]["plain_18-s0"]["n_images"] == 4
    assert run.saliency("gradcam") is None
    classes = content["networks"]["resnet_18-s0"]["classes"]
    assert sum(one["n_pictures"] for one in classes.values()) == 12
    maps = np.load(run.path / "saliency" / "guided-backprop-mean-plain_18-s0.npy")
    assert maps.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ([], "--split test for the run's own test images, but got neither"),
        (["x.png", "--split", "test"], "but got both"),
        (["--split", "test", "-o", "x.png"], "neither --output nor --classes"),
        (["x.png", "--trust=-1"], "0 or more pictures, but got -1"),
        (["missing.png"], "there is nothing at missing.png"),
        ([__file__, "-o", "maps.gif"], "one of .png, .svg, .pdf, .jpg, .jpeg"),
        ([__file__, "-o", "."], "can be written, but got ."),
        ([__file__, "--runs", "none"], "Run `gradflow train` first"),
    ],
)
def test_saliency_says_what_it_needs(flags: list[str], want: str, command: Command) -> None:
    said = command("saliency", *flags)
    assert (said.code, want in said.err) == (2, True)


@pytest.mark.usefixtures("run")
def test_saliency_takes_the_seeds_it_is_given(command: Command) -> None:
    for seeds, want in (
        ("7", "Expected seeds of 0, which have trained networks, but got 7"),
        ("one", "separated by commas, or all, but got 'one'"),
    ):
        said = command("saliency", IMAGE, "--seeds", seeds)
        assert (said.code, want in said.err) == (2, True)
    said = command("saliency", IMAGE, "--seeds", "all", *QUICK, "--json")
    (picture,) = json.loads(said.out)["pictures"]
    assert list(picture["networks"]) == ["plain_18-s0", "resnet_18-s0"]


def test_from_python_it_is_a_function(run: RunDir) -> None:
    found = gradflow.saliency(run.path, "pictures/red/03.png", method="gradient")
    assert list(found) == ["plain_18-s0", "resnet_18-s0"]
    for one in found.values():
        assert one.maps.shape == (3, 8, 8)
        assert one.probabilities.sum() == pytest.approx(1)
    Path("no.png").write_bytes(b"")
    with pytest.raises(BadImage, match="no.png"):
        gradflow.saliency(run, "no.png")


def test_a_report_from_python_goes_into_the_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page holds is tested in tests/present."""
    page = "gradflow.present.report.page"
    monkeypatch.setattr(f"{page}.collect", lambda folders: folders)
    monkeypatch.setattr(f"{page}.charts", lambda content: [])
    monkeypatch.setattr(f"{page}.write", lambda content, charts, path: [path, content])
    assert gradflow.report(run) == gradflow.report(run.path) == run.path / "report.html"
    assert gradflow.report([run.path], run.path / "own.html") == run.path / "own.html"
