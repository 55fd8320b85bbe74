"""Pictures of every odd kind, folders of them, the gallery of the test set, and the terminal."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gradflow.data import BadImage
from gradflow.present import plots
from gradflow.present.saliency import attribute, pictures, views
from gradflow.present.saliency.attribution import Attribution
from gradflow.present.saliency.gallery import N_RIGHT, N_WRONG, make_gallery, mean_map
from gradflow.present.saliency.methods import METHODS, ClassMaps
from gradflow.present.saliency.trust import TRUST_THRESHOLDS, Trust, TrustCheck
from tests.present.printed import printed

CLASSES = ("blue", "green", "red")
SIDE = 16


class Colours(nn.Module):
    """Its logits are the mean blue, green and red: what it sees is known."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data = torch.eye(3).flip(0)[..., None, None]

    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3))


def read(path: Path) -> pictures.Picture:
    (found,) = pictures.read_pictures([path], ["x"], SIDE)
    assert isinstance(found, pictures.Picture), found
    return found


def says(path: Path) -> str:
    images = pictures.to_batch([read(path)])
    result = attribute(Colours(), images, CLASSES)
    assert np.isfinite(result.maps).all()
    return CLASSES[result.predicted]


def solid(mode: str, color: object, size: tuple[int, int] = (20, 30)) -> Image.Image:
    return Image.new(mode, size, color)


# -- odd pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (4000, 3000)])
def test_any_size_works_from_one_pixel_to_twelve_million(size, tmp_path):
    solid("RGB", "green", size).save(tmp_path / "x.png")
    assert says(tmp_path / "x.png") == "green"


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_a_file_that_cannot_be_read_gets_a_sentence(kind, tmp_path):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "JPEG")
    content = {"truncated": whole.getvalue()[:2000], "text": b"no image", "empty": b""}[kind]
    (tmp_path / "x.jpg").write_bytes(content)
    (found,) = pictures.read_pictures([tmp_path / "x.jpg"], ["x"], SIDE)
    assert isinstance(found, BadImage)
    want = "image file is truncated" if kind == "truncated" else "not an image in a format"
    assert want in str(found)
    assert "x.jpg" in str(found)


# -- folders -----------------------------------------------------------------------------------


def test_a_bad_file_does_not_stop_the_others(tmp_path):
    (tmp_path / "b.png").write_bytes(b"")
    for name, color in {"a.png": "red", "c.png": "blue", "d.png": "green"}.items():
        solid("RGB", color).save(tmp_path / name)
    paths = pictures.find_pictures(tmp_path)
    read_ones = pictures.read_pictures(paths, "abcd", SIDE)
    found = list(
        pictures.explain({"net": Colours()}, read_ones, CLASSES, method="gradient", n_classes=None)
    )
    assert isinstance(found[1], BadImage)
    said = [(picture.name, CLASSES[of["net"].predicted]) for picture, of in found[:1] + found[2:]]
    assert said == [("a", "red"), ("c", "blue"), ("d", "green")]


@pytest.mark.parametrize(("method", "n_read"), [("gradient", 9), ("integrated-gradients", 1)])
def test_a_picture_of_many_passes_is_not_kept_waiting_for_the_next(tmp_path, method, n_read):
    solid("RGB", "red", (224, 224)).save(tmp_path / "a.png")
    taken = []

    def reading():
        for i in range(9):
            taken.append(i)
            yield from pictures.read_pictures([tmp_path / "a.png"], [str(i)], 224)

    found = pictures.explain({"net": Colours()}, reading(), CLASSES, method=method, n_classes=1)
    next(found)
    assert len(taken) == n_read


def test_pictures_are_found_in_deeper_folders_and_other_files_are_not(tmp_path):
    (tmp_path / "deep").mkdir()
    solid("RGB", "red").save(tmp_path / "deep" / "b.PNG")
    solid("RGB", "red").save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "@eaDir" / "a.jpg").mkdir(parents=True)
    solid("RGB", "red").save(tmp_path / "@eaDir" / "a.jpg" / "SYNOPHOTO_THUMB_M.jpg")
    found = pictures.find_pictures(tmp_path)
    assert [path.name for path in found] == ["a.jpg", "b.PNG"]
    with pytest.raises(FileNotFoundError, match="pictures in .*, but got no files"):
        pictures.find_pictures((tmp_path / "none").mkdir() or tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        pictures.find_pictures(tmp_path / "missing")


def test_what_an_earlier_call_wrote_is_not_read_as_a_picture(tmp_path):
    """A folder's output, the output of one file, and pictures that only look like either."""
    for name in (
        "a.png",
        "a-saliency.png",
        "own-saliency.png",  # without scores beside it: somebody's own
        "holiday-saliency/a.png",
        "holiday-saliency/deep/a.png",
        "deep/b.png",
        "deep/maps/b.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        solid("RGB", "red").save(tmp_path / name)
    for name in ("a-saliency.json", "holiday-saliency/saliency.json", "deep/maps/saliency.json"):
        (tmp_path / name).write_text("{}")

    def found(folder):
        return [one.relative_to(folder).as_posix() for one in pictures.find_pictures(folder)]

    assert found(tmp_path) == ["a.png", "deep/b.png", "own-saliency.png"]
    assert found(tmp_path / "holiday-saliency") == ["a.png", "deep/a.png"]  # asked for by name
    (tmp_path / "only").mkdir()
    (tmp_path / "holiday-saliency").rename(tmp_path / "only" / "maps")
    with pytest.raises(FileNotFoundError, match="apart from what an earlier call wrote"):
        pictures.find_pictures(tmp_path / "only")


def test_raw_maps_are_saved_as_they_are(tmp_path):
    maps = np.random.default_rng(0).normal(size=(2, 4, 4))
    result = Attribution("gradient", None, CLASSES, np.array([0.2, 0.3, 0.5]), maps, (2, 1))
    paths = pictures.save_maps({"net": result}, tmp_path / "new" / "x.png")
    saved = np.load(paths["net"], allow_pickle=False)
    np.testing.assert_array_equal(saved, maps.astype(np.float32))
    content = result.to_json()
    assert content["predicted"] == "red"
    assert content["map_classes"] == ["red", "green"]
    assert content["probabilities"] == {"blue": 0.2, "green": 0.3, "red": 0.5}


# -- the gallery -------------------------------------------------------------------------------


def painted(seen: list[int]) -> torch.Tensor:
    """A picture of the colour of each class, each a little stronger than the one before."""
    pixels = torch.zeros(len(seen), 3, 8, 8, dtype=torch.uint8)
    for i, label in enumerate(seen):
        pixels[i, 2 - label] = 200 + i
    return pixels


def eight_of_each_class() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight pictures of each class, of which the last three are of the next class's colour."""
    labels = torch.arange(3).repeat_interleave(8)
    seen = [label if i % 8 < 5 else (label + 1) % 3 for i, label in enumerate(labels.tolist())]
    return painted(seen), labels


def test_the_gallery_shows_the_first_right_ones_and_the_surest_wrong_ones():
    pixels, labels = eight_of_each_class()
    found = make_gallery(Colours(), pixels, labels, CLASSES, "gradient")
    assert found.n_right == (5, 5, 5)
    assert found.n_pictures == (8, 8, 8)
    for label, examples in enumerate(found.examples):
        assert [one.index - 8 * label for one in examples] == [0, 1, 2, 7, 6]
        assert [one.is_right for one in examples] == [True] * N_RIGHT + [False] * N_WRONG
        assert {one.predicted for one in examples if not one.is_right} == {(label + 1) % 3}
    np.testing.assert_allclose(found.mean_maps, 1, rtol=1e-5)  # a mean of the pixels: all equal
    assert found.n_in_mean == (8, 8, 8)


def plant_deltas(monkeypatch, by_class: list[float]) -> None:
    """Integrated gradients whose logits change by 2, which the sums miss by so much per class."""

    def compute(model, images, classes):
        changes = torch.full(classes.shape, 2.0)
        values = torch.ones(*classes.shape, *images.shape[1:])
        return ClassMaps(values, deltas=torch.tensor(by_class)[classes], changes=changes)

    planted = dataclasses.replace(METHODS["integrated-gradients"], compute=compute)
    monkeypatch.setitem(METHODS, "integrated-gradients", planted)


def test_the_gallery_says_once_how_many_sums_of_maps_miss_their_logit(monkeypatch):
    """It holds 24 maps of the pictures' own classes, and 6 of what was wrongly predicted.

    Of these 8 and 2 are of the first class.
    """
    pixels, labels = eight_of_each_class()
    plant_deltas(monkeypatch, [-0.46, 0.0, 0.09])
    found = make_gallery(Colours(), pixels, labels, CLASSES, "integrated-gradients")
    assert found.notes == ("of 30 maps 10 miss their sum by more than 5 %, the worst by 23 %",)
    content = found.to_json()
    examples = [one for of in content["classes"].values() for one in of["examples"]]
    assert {one["logit_change"] for one in examples} == {2.0}
    deltas = {one["predicted"]: one["convergence_delta"] for one in examples}
    assert deltas == pytest.approx({"blue": -0.46, "green": 0.0, "red": 0.09})
    plant_deltas(monkeypatch, [0.0, 0.0, 0.0])
    right = make_gallery(Colours(), pixels, labels, CLASSES, "integrated-gradients")
    assert right.notes == ()


def test_a_mean_map_weighs_each_picture_alike_and_leaves_empty_ones_out():
    maps = [np.array([[1.0, 0.5]]), np.array([[0.0, 40.0]]), np.array([[-1.0, 0.0]])]
    mean, n = mean_map(maps)
    np.testing.assert_allclose(mean, [[0.5, 0.75]])
    assert n == 2
    assert mean_map([np.zeros((2, 2))]) == (None, 0)


def test_the_gallery_says_what_is_wrong_and_marks_it(tmp_path):
    labels, pixels = torch.tensor([0, 0, 1, 2]), painted([0, 1, 1, 2])
    gallery = make_gallery(Colours(), pixels, labels, CLASSES, "gradcam")
    axes = plots.gallery_grid("net", gallery)
    assert [len(row) for row in axes] == [3, 2, 2]
    assert axes[0][1].get_title().startswith("blue\n")
    assert axes[0][2].get_title().startswith("✗ green\n")
    assert [ax.spines["left"].get_visible() for ax in axes[0]] == [False, False, True]
    assert "1 of 2" in axes[0][0].texts[0].get_text()
    np.testing.assert_array_equal(axes[0][2].images[1].get_array(), gallery.examples[0][1].map)
    plots.save(axes, tmp_path / "gallery.png")


def test_mean_maps_share_one_scale_and_an_empty_one_says_so(tmp_path):
    labels = torch.tensor([0, 1, 2])
    pixels = torch.full((3, 3, 8, 8), 200, dtype=torch.uint8)
    gallery = make_gallery(Colours(), pixels, labels, CLASSES, "gradcam")
    gallery.mean_maps[1] = np.nan
    gallery.mean_maps[2] /= 4
    axes = plots.mean_maps_grid({"one": gallery, "two": gallery})
    assert len(axes) == 2
    shown = axes[0][2].images[0]
    np.testing.assert_array_equal(shown.get_array(), gallery.mean_maps[2])
    assert (shown.norm.vmin, shown.norm.vmax) == (0, axes[0][0].images[0].norm.vmax)
    assert axes[0][1].texts[0].get_text() == "no map: nothing above zero"
    plots.save(axes, tmp_path / "mean.png")


# -- the terminal ------------------------------------------------------------------------------


def trust_of(**values: float) -> Trust:
    checks = tuple(TrustCheck(name, (values.get(name, float("nan")),)) for name in TRUST_THRESHOLDS)
    curve = np.array([0.9, 0.1])
    return Trust("gradcam", checks, np.array([0.0, 1.0]), curve, curve[::-1])


def test_the_table_of_trust_says_which_check_failed():
    good = {"randomisation": 0.1, "infidelity": 0.5, "sensitivity": 0.2}
    trust = {
        "plain": trust_of(**good, insertion_minus_deletion=0.2),
        "res": trust_of(**{**good, "randomisation": 0.75}, insertion_minus_deletion=-0.1),
        "new": trust_of(),
    }
    assert printed(views.trust_view(trust), width=100) == GOLDEN_TRUST


GOLDEN_TRUST = """\
Does gradcam mean anything? Map of the predicted class, 1 picture
┏━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━┓
┃ network     ┃ randomisation ┃ infidelity ┃ sensitivity ┃ insertion − deletion ┃ answer  ┃
┡━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━┩
│ (passes if) │         < 0.5 │      < 0.9 │         < 1 │                  > 0 │         │
│ plain       │          0.10 │       0.50 │        0.20 │                 0.20 │ passes  │
│ res         │        0.75 ✗ │       0.50 │        0.20 │              -0.10 ✗ │ fails   │
│ new         │       unknown │    unknown │     unknown │              unknown │ unknown │
└─────────────┴───────────────┴────────────┴─────────────┴──────────────────────┴─────────┘
plain: deletion area 0.50, insertion area 0.50
res: deletion area 0.50, insertion area 0.50
new: deletion area 0.50, insertion area 0.50"""
