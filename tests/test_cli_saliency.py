"""`gradflow saliency` as a user gives it: a picture, a folder, the test set, and mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gradflow
from gradflow.cli import main
from gradflow.data import BadImage
from gradflow.training.config import TrainConfig
from gradflow.training.images import load_data
from gradflow.training.rundir import RunDir
from gradflow.training.weights import build_network, save_tensors


@pytest.fixture
def run(pictures: Path, tmp_path: Path) -> RunDir:
    """A run of two networks on the small pictures, whose weights are those of the start."""
    config, data = load_data(
        TrainConfig(
            data=str(pictures),
            image_size=8,
            width=0.125,
            arch="plain_18,resnet_18",
            out=tmp_path / "runs",
        )
    )
    made = RunDir.create(config)
    made.save_config(config)
    made.save_data(data.to_json())
    for arch in config.networks:
        model = build_network(arch, len(data.class_names), config, seed=0)
        save_tensors(model.state_dict(), made.network(arch, 0).weights("best"))
    return made


def test_saliency_of_the_newest_run(
    run: RunDir,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # where `runs` is
    image = str(pictures / "green" / "03.png")
    assert main(["saliency", image]) == 0
    out = capsys.readouterr().out
    for words in ("plain_18-s0", "green", "gradcam at ", "passes if", "03-saliency.json"):
        assert words in out
    with Image.open(tmp_path / "03-saliency.png") as picture:
        assert min(picture.size) > 300
    flags = ["--method", "gradient", "--classes", "1", "--trust", "0", "-o", "new/x.png", "--json"]
    assert main(["saliency", image, *flags]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((tmp_path / "new" / "x.json").read_text())
    assert content["trust"] == {}
    (picture,) = content["pictures"]
    for network in picture["networks"].values():
        assert sum(network["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert network["map_classes"] == [network["predicted"]]
        assert np.load(tmp_path / network["maps"]).shape == (1, 8, 8)


@pytest.mark.parametrize(("asked", "written"), [("maps", "maps.png"), ("maps.jpg", "maps.jpg")])
def test_the_picture_stands_where_the_command_says(
    asked: str,
    written: str,
    run: RunDir,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    image = str(pictures / "green" / "03.png")
    flags = ["--run", str(run.path), "--method", "gradient", "--trust", "0"]
    assert main(["saliency", image, "-o", asked, *flags]) == 0
    assert f"picture  {written}\n" in capsys.readouterr().out
    (picture,) = json.loads((tmp_path / "maps.json").read_text())["pictures"]
    assert picture["picture"] == written
    with Image.open(tmp_path / written) as made:
        assert min(made.size) > 300


def test_the_terminal_says_how_far_integrated_gradients_are_off(
    run: RunDir, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(pictures / "green" / "03.png")
    flags = ["--run", str(run.path), "--method", "integrated-gradients", "--trust", "0"]
    assert main(["saliency", image, "-o", str(tmp_path / "x.png"), *flags]) == 0
    out = capsys.readouterr().out
    (picture,) = json.loads((tmp_path / "x.json").read_text())["pictures"]
    for name, one in picture["networks"].items():
        deltas, changes = one["convergence_deltas"], one["logit_changes"]
        worst = max(abs(a / b) for a, b in zip(deltas, changes, strict=True))
        said = "the sum of a map misses the change of its logit by at most"
        assert f"{name}: integrated-gradients: {said} {100 * worst:.1f} %\n" in out


def test_saliency_of_a_folder_goes_on_after_a_bad_file(
    run: RunDir, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((pictures / "green").iterdir())[3:]:
        path.unlink()
    (pictures / "green" / "00-cut.png").write_bytes(b"")  # the first of all
    flags = ["--run", str(run.path), "-o", str(tmp_path / "maps"), "--trust", "1"]
    assert main(["saliency", str(pictures / "green"), *flags]) == 0
    out, log = capsys.readouterr()
    assert "cut.png: not an image in a format that Pillow can read" in log
    assert "\nplain_18-s0: gradcam at " in out
    assert "passes if" in out
    content = json.loads((tmp_path / "maps" / "saliency.json").read_text())
    assert [Path(one["file"]).name for one in content["left_out"]] == ["00-cut.png"]
    assert len(content["pictures"]) == 3
    assert {path.suffix for path in (tmp_path / "maps").iterdir()} == {".png", ".npy", ".json"}
    assert len(list((tmp_path / "maps").glob("*.npy"))) == 6
    for path in (pictures / "green").glob("*.png"):
        path.write_bytes(b"")
    assert main(["saliency", str(pictures / "green"), *flags]) == 2
    assert "Expected a readable picture" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["holiday [raw]", "a[", "x :cat: [bold]"])
def test_a_path_is_printed_as_it_is(
    name: str,
    run: RunDir,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name) / "b]"  # `a[/b]` closes a tag that was never opened
    folder.mkdir(parents=True)
    (pictures / "green" / "03.png").rename(folder / "03.png")
    (folder / "cut.png").write_bytes(b"")
    run.path.rename(folder / "run")
    flags = ["--run", str(folder / "run"), "--method", "gradient", "--trust", "0"]
    assert main(["saliency", str(folder), "-o", str(folder / "maps"), *flags]) == 0
    out, log = capsys.readouterr()
    assert f"run      {folder}/run\n" in out
    assert f"picture  {folder}/maps\n" in out
    assert f"Left out: {folder}/cut.png: " in log
    assert main(["saliency", str(folder / "none.png"), *flags]) == 2
    assert f"nothing at {folder}/none.png" in capsys.readouterr().err


def test_saliency_of_the_test_set_goes_to_the_run(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--run", str(run.path), "--split", "test", "--method", "guided-backprop"]
    assert main(["saliency", *flags]) == 0
    out, log = capsys.readouterr()
    assert "test pictures named right" in out
    assert "it fails randomisation checks" in log
    names = [path.name for path in run.saliency_figures()]
    assert names == [
        f"saliency-guided-backprop-{end}.png" for end in ("mean", "plain_18-s0", "resnet_18-s0")
    ]
    printed = "".join(out.split())  # a long path goes over several lines
    assert [name for name in names if f"picture{run.figures}/{name}" in printed] == names
    written = sorted(path.name for path in run.figures.iterdir())
    endings = (".svg", ".png", "-dark.svg", "-dark.png")
    assert written == sorted(name.replace(".png", end) for name in names for end in endings)
    for path in run.saliency_figures():
        assert paper_of(path) == (255, 255, 255)
        assert paper_of(path.with_stem(f"{path.stem}-dark")) == (21, 24, 27)  # #15181b
    content = run.saliency("guided-backprop")
    assert content is not None
    assert content["trust"]["plain_18-s0"]["n_images"] == 4
    assert run.saliency("gradcam") is None
    classes = content["networks"]["resnet_18-s0"]["classes"]
    assert sum(one["n_pictures"] for one in classes.values()) == 12
    maps = np.load(run.path / "saliency" / "guided-backprop-mean-plain_18-s0.npy")
    assert maps.shape == (3, 8, 8)


def paper_of(path: Path) -> tuple[int, ...]:
    with Image.open(path) as picture:
        return picture.convert("RGB").getpixel((0, 0))


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
    ],
)
def test_saliency_says_what_it_needs(
    flags: list[str], want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["saliency", *flags]) == 2
    assert want in capsys.readouterr().err


def test_saliency_takes_the_seeds_it_is_given(
    run: RunDir, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(pictures / "green" / "03.png")
    flags = ["saliency", image, "--run", str(run.path), "-o", str(tmp_path / "x.png")]
    assert main([*flags, "--seeds", "7"]) == 2
    assert "Expected seeds of 0, which have trained networks, but got 7" in capsys.readouterr().err
    assert main([*flags, "--seeds", "one"]) == 2
    assert "separated by commas, or all, but got 'one'" in capsys.readouterr().err
    assert main([*flags, "--seeds", "all", "--trust", "0", "--json"]) == 0
    (picture,) = json.loads(capsys.readouterr().out)["pictures"]
    assert list(picture["networks"]) == ["plain_18-s0", "resnet_18-s0"]


def test_from_python_it_is_a_function(run: RunDir, pictures: Path, tmp_path: Path) -> None:
    found = gradflow.saliency(run.path, pictures / "red" / "03.png", method="gradient")
    assert list(found) == ["plain_18-s0", "resnet_18-s0"]
    for one in found.values():
        assert one.maps.shape == (3, 8, 8)
        assert one.probabilities.sum() == pytest.approx(1)
    (tmp_path / "no.png").write_bytes(b"")
    with pytest.raises(BadImage, match="no.png"):
        gradflow.saliency(run, tmp_path / "no.png")


def test_a_report_from_python_goes_into_the_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page holds is tested in tests/present/test_report.py."""
    monkeypatch.setattr("gradflow.present.report.page.collect", lambda folders: folders)
    monkeypatch.setattr("gradflow.present.report.page.charts", lambda content: [])
    monkeypatch.setattr(
        "gradflow.present.report.page.write", lambda content, charts, path: [path, content]
    )
    assert gradflow.report(run) == gradflow.report(run.path) == run.path / "report.html"
    assert gradflow.report([run.path], run.path / "own.html") == run.path / "own.html"


def test_saliency_without_a_run_says_what_to_do(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(pictures / "green" / "03.png")
    assert main(["saliency", image, "--runs", str(tmp_path)]) == 2
    assert "Run `gradflow train` first" in capsys.readouterr().err
