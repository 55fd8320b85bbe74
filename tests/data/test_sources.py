"""What open_source takes, in which order it names things, and that every oddity decodes rightly."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from gradflow.data import BadImage, Source, open_source, read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_csv(path: Path, *rows: str, header: str = "filename,label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def class_names_of(source: Source) -> list[str]:
    return [source.class_names[label] for label in source.labels]


# --- sources -------------------------------------------------------------------------------


def test_digits_are_scikit_learns_with_its_0_to_16_stretched_to_0_to_255():
    from sklearn.datasets import load_digits

    source, bunch = open_source("digits"), load_digits()
    assert len(source.keys) == 1797
    assert source.labels.tolist() == bunch.target.tolist()
    pixels = np.asarray(source.read(5))
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_allclose(pixels[..., 0] / 255, bunch.images[5] / 16, atol=0.5 / 255)
    assert (source.image_size, source.mirror) == (8, False)


def test_class_folders_are_sorted_nested_files_count_and_hidden_ones_do_not(tmp_path):
    for name in ("b/2.png", "b/deep/1.png", "a/ünï cödé 図.png", "stray.png"):
        save(tmp_path / name)
    for hidden in ("a/._2.png", ".cache/3.png", "a/.thumbs/4.png", "__MACOSX/a/5.png"):
        save(tmp_path / hidden)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert source.class_names == ("a", "b")
    assert source.keys == ("a/ünï cödé 図.png", "b/2.png", "b/deep/1.png")
    assert source.labels.tolist() == [0, 1, 1]
    assert source.unlabelled == ("stray.png",)
    assert source.read(0).getpixel((0, 0)) == RED
    assert (source.name, source.image_size, source.mirror) == (tmp_path.name, 224, True)


@pytest.mark.parametrize("home", [".", "labels", "pictures"])
def test_a_csv_finds_its_images_beside_it_in_its_namesake_or_in_the_only_folder(tmp_path, home):
    save(tmp_path / home / "1.png")
    save(tmp_path / home / "2.png")
    save(tmp_path / home / "3.png")
    write_csv(tmp_path / "labels.csv", "2.png,soto", "1.png,bakso", "gone.png,soto")
    prefix = "" if home == "." else f"{home}/"
    for given in (tmp_path, tmp_path / "labels.csv"):
        source = open_source(given)
        assert source.keys == (f"{prefix}2.png", f"{prefix}1.png")
        assert class_names_of(source) == ["soto", "bakso"]
        assert source.class_names == ("bakso", "soto")
        assert source.missing == (f"{prefix}gone.png",)
        assert source.unlabelled == (f"{prefix}3.png",)


def test_a_csv_may_have_a_byte_order_mark_more_columns_blank_lines_and_repeated_rows(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "2.png")
    table = tmp_path / "x.csv"
    text = "\ufeffid,Label, filename\n1,a,1.png\n\n2, b ,./2.png\n3,b,2.png\n"
    table.write_text(text, encoding="utf-8")
    source = open_source(table)
    assert source.keys == ("1.png", "2.png")
    assert class_names_of(source) == ["a", "b"]


def test_of_two_tables_only_the_one_with_the_columns_counts(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "2.png")
    write_csv(tmp_path / "prices.csv", "1,2", header="dish,price")
    write_csv(tmp_path / "train.csv", "1.png,a", "2.png,b")
    assert open_source(tmp_path).keys == ("1.png", "2.png")
    write_csv(tmp_path / "test.csv", "1.png,a", "2.png,b")
    with pytest.raises(ValueError, match=r"got test.csv, train.csv. Pass the path of the one"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["1.png,a", "1.png,b"], "filename,label", "'a' in line 2 and as 'b' in line 3"),
        (["1.png,a", "2.png,"], "filename,label", "line 3 .* got '2.png' and ''. Fill in"),
        (["1.png"], "filename,label", "line 2 .* got '1.png' and ''"),
        (["8.png,a"], "file,class", r"filename,label .* got file,class \(separated by commas\)"),
        ([], "filename,label", "rows below the header"),
        (["1.png,a", "2.png,a"], "filename,label", r"two classes .* got \['a'\]"),
        (["8.png,a", "9.png,b"], "filename,label", "the 2 images .* found none of them"),
    ],
)
def test_a_wrong_csv_is_an_error_that_says_where_and_what_to_do(tmp_path, rows, header, message):
    save(tmp_path / "1.png")
    save(tmp_path / "2.png")
    table = write_csv(tmp_path / "train.csv", *rows, header=header)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source(table)


def test_a_csv_in_another_encoding_is_an_error(tmp_path):
    (tmp_path / "x.csv").write_bytes("filename,label,größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match="Expected UTF-8"):
        open_source(tmp_path)


def test_folders_without_classes_are_errors_that_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="class folders, or a CSV .* got neither. Make one"):
        open_source(tmp_path)
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "val" / "a" / "1.png")
    with pytest.raises(ValueError, match=r"got the parts train, val. Point at .*train; gradflow"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="two classes"):
        open_source(tmp_path / "train")
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(ValueError, match="got none in b. Put images there"):
        open_source(tmp_path / "train")


def test_an_unknown_name_or_path_is_an_error_with_the_nearest_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got 'cifar1o'. Did you mean cifar10\?"):
        open_source("cifar1o")
    with pytest.raises(FileNotFoundError, match="Check the path"):
        open_source(tmp_path / "no such folder")
    with pytest.raises(ValueError, match="Expected a folder or a CSV file"):
        open_source(save(tmp_path / "1.png"))


def test_a_torchvision_set_is_never_fetched_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADFLOW_DATA", str(tmp_path / "store"))
    with pytest.raises(FileNotFoundError, match="cifar10 in .*store.* Add --download"):
        open_source("CIFAR-10")
    assert not (tmp_path / "store").exists()


def fake_set(labels: list[int], parts_fetched: list[str], present: set[str]) -> type:
    class FakeSet:
        """A torchvision set of one-pixel images whose red value is their place in the part."""

        def __init__(self, root: Path, split: str, download: bool = False) -> None:
            if download:
                parts_fetched.append(split)
                present.add(split)
            if split not in present:
                raise RuntimeError("Dataset not found.")
            self._labels = labels
            self.offset = 100 * (split == "test")

        def __len__(self) -> int:
            return len(self._labels)

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            if self.offset + i == 101:
                raise OSError("image file is truncated")
            return Image.new("RGB", (1, 1), (self.offset + i, 0, 0)), self._labels[i]

    return FakeSet


def test_a_torchvision_set_is_train_then_test_and_fetches_only_what_is_not_there(monkeypatch):
    fetched: list[str] = []
    monkeypatch.setattr(datasets, "SVHN", fake_set([1, 0, 2], fetched, {"train"}))
    source = open_source("svhn", download=True)
    assert fetched == ["test"]
    assert source.class_names == ("0", "1", "2")
    assert source.labels.tolist() == [1, 0, 2, 1, 0, 2]
    reds = [source.read(i).getpixel((0, 0))[0] for i in (0, 1, 2, 3, 5)]
    assert reds == [0, 1, 2, 100, 102]
    assert len(set(source.keys)) == 6
    with pytest.raises(BadImage, match=r"svhn/000004: image file is truncated"):
        source.read(4)


def test_a_fetch_that_fails_says_what_to_check(monkeypatch, tmp_path):
    def offline(root: Path, split: str, download: bool) -> None:
        raise (OSError("unreachable") if download else RuntimeError("Dataset not found."))

    monkeypatch.setenv("GRADFLOW_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "SVHN", offline)
    with pytest.raises(OSError, match=r"fetch .* svhn .* unreachable. Check the network"):
        open_source("svhn", download=True)


def test_every_name_in_the_table_is_a_torchvision_class_that_takes_its_arguments():
    import inspect

    from gradflow.data.sources import ZOO

    for name, entry in ZOO.items():
        parameters = inspect.signature(getattr(datasets, entry.dataset)).parameters
        assert "download" in parameters, name
        for kwargs in entry.parts:
            assert set(kwargs) <= set(parameters), name


def test_class_names_and_labels_are_found_wherever_torchvision_keeps_them():
    from gradflow.data.sources import _class_names, _labels

    assert _labels(SimpleNamespace(targets=[1, 0])).tolist() == [1, 0]
    assert _labels(SimpleNamespace(y=[1, 0])).tolist() == [1, 0]
    assert _labels(SimpleNamespace(_samples=[("a.jpg", 1), ("b.jpg", 0)])).tolist() == [1, 0]
    imagenette = SimpleNamespace(classes=[("tench", "Tinca tinca"), ("church", "church building")])
    assert _class_names(imagenette, 2) == ("tench", "church")
    assert _class_names(SimpleNamespace(categories=["a", "b"]), 2) == ("a", "b")


def test_a_source_checks_itself():
    good = {
        "name": "x",
        "class_names": ("a", "b"),
        "keys": ("1", "2"),
        "labels": np.array([0, 1]),
        "read": lambda i: Image.new("RGB", (1, 1)),
        "image_size": 32,
        "mirror": True,
    }
    Source(**good)
    for change, message in [
        ({"keys": ()}, "Expected images"),
        ({"keys": ("1", "1")}, "different images in x, but got 1 twice"),
        ({"labels": np.array([0])}, r"shape \(2,\), but got int64 \(1,\)"),
        ({"labels": np.array([0, 2])}, "from 0 to 1, but got 0 to 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            Source(**(good | change))


# --- files ---------------------------------------------------------------------------------


def solid(colour: tuple[int, int, int], mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (20, 10), colour).convert(mode)


def pixels(rows: object, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=dtype))


def palette() -> Image.Image:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    return image


FRAMES = {"save_all": True, "append_images": [solid(GREEN), solid(BLUE)], "duration": 50}
GREYS = [0, 1, 50, 128, 255]  # v / 257, not clipped: 65535 is white
# Name of the file, what is saved and how, and the colours of the first row.
PICTURES = [
    *((f"a.{suffix}", solid(RED), {}, RED)
      for suffix in ("png", "webp", "gif", "bmp", "tif", "ppm", "JPG")),
    ("one pixel.png", Image.new("RGB", (1, 1), GREEN), {}, GREEN),
    *((f"{mode}.{suffix}", solid(WHITE, mode), {}, WHITE)
      for mode, suffix in (("1", "png"), ("L", "png"), ("YCbCr", "tif"))),
    ("cmyk.jpg", solid((200, 60, 30), "CMYK"), {"quality": 95}, (200, 60, 30)),
    *((f"animation.{suffix}", solid(RED), FRAMES, RED) for suffix in ("gif", "webp", "png")),
    *((f"16 bit.{suffix}", pixels([[0, 257, 12850, 32896, 65535]], np.uint16), {},
       [[grey] * 3 for grey in GREYS]) for suffix in ("png", "tif")),
    ("rgba.png", pixels([[[*RED, 255], [*RED, 0], [*RED, 128]]]), {},
     [RED, WHITE, (255, 127, 127)]),
    ("grey alpha.png", pixels([[[0, 255], [0, 0]]]), {}, [(0, 0, 0), WHITE]),
    ("palette.png", palette(), {"transparency": 1}, [RED, WHITE]),
    ("palette of bytes.png", palette(), {"transparency": bytes([255, 0])}, [RED, WHITE]),
    ("broken exif.jpg", solid(RED), {"exif": b"Exif\x00\x00MM\x00\x2a\x00\x00"}, RED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "image", "options", "colours"), PICTURES, ids=[name for name, *_ in PICTURES]
)
def test_a_picture_decodes_to_its_colours(tmp_path, name, image, options, colours):
    """Transparency is laid on white, and an animation gives its first frame."""
    image.save(tmp_path / name, **options)
    found = read_image(tmp_path / name)
    assert (found.mode, found.size) == ("RGB", image.size)
    row = np.asarray(found)[0]
    lossy = name.lower().endswith((".jpg", ".webp"))
    np.testing.assert_allclose(row, np.broadcast_to(colours, row.shape), atol=6 if lossy else 1)


def saved(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


NO_IMAGE = "not an image in a format that Pillow can read"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 moveto\n"
NOISE = pixels(np.random.default_rng(0).integers(0, 256, (64, 64, 3)))


BAD = [
    ("cut.jpg", saved(NOISE, "JPEG")[:2000], ".*truncated"),  # Pillow's `verify` passes it
    ("page.jpg", b"<html>404</html>", NO_IMAGE),
    ("empty.png", b"", NO_IMAGE),
    ("program.png", EPS, NO_IMAGE),  # Pillow hands it to Ghostscript, whatever its name
    ("float.tif", saved(pixels([[0.0, 0.5]], np.float32), "TIFF"), ".*save it as 16 bit"),
    ("gone.jpg", None, "no such file"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BAD, ids=[name for name, *_ in BAD])
def test_what_cannot_be_used_is_a_bad_image_with_a_reason(
    tmp_path, monkeypatch, name, content, reason
):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("started"))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImage, match=f"{re.escape(name)}: {reason}") as caught:
        read_image(tmp_path / name)
    assert str(caught.value).endswith(f"{name}: {caught.value.reason}")


def test_a_decompression_bomb_is_a_bad_image_not_a_crash(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", RED, (100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="too many pixels"):
        read_image(path)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), RED)
    image.paste(Image.new("RGB", (8, 8), BLUE), (0, 0))  # blue in the stored top left corner
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show": top left goes to top right
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "turned.jpg")
    assert upright.size == (20, 40)
    np.testing.assert_allclose(upright.getpixel((17, 2)), BLUE, atol=8)
    np.testing.assert_allclose(upright.getpixel((2, 2)), RED, atol=8)
