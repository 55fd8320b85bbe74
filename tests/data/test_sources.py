"""What open_source takes, in which order it names things, and that every oddity decodes rightly."""

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
    path.parent.mkdir(parents=True, exist_ok=True)
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


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "bmp", "tif", "ppm", "JPG"])
def test_common_formats_decode_to_their_colour(tmp_path, suffix):
    image = read_image(save(tmp_path / f"a.{suffix}", RED, (20, 10)))
    assert (image.mode, image.size) == ("RGB", (20, 10))
    np.testing.assert_allclose(image.getpixel((3, 3)), RED, atol=4)


def test_a_truncated_jpeg_is_bad_although_pillow_verifies_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image:
        image.verify()  # does not notice
    with pytest.raises(BadImage, match=r"cut\.jpg: .*truncated"):
        read_image(path)


def test_text_an_empty_file_and_no_file_are_bad_images(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.png").touch()
    for name in ("page.jpg", "empty.png"):
        with pytest.raises(BadImage, match="not an image in a format that Pillow can read"):
            read_image(tmp_path / name)
    with pytest.raises(BadImage, match=r"gone\.jpg: no such file") as caught:
        read_image(tmp_path / "gone.jpg")
    assert caught.value.reason == "no such file"


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


def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path):
    path = tmp_path / "odd.jpg"
    Image.new("RGB", (16, 16), RED).save(path, exif=b"Exif\x00\x00MM\x00\x2a\x00\x00")
    assert read_image(path).size == (16, 16)


def test_a_picture_that_would_start_another_program_is_none(tmp_path, monkeypatch):
    """EPS, whatever its name: Pillow hands it to Ghostscript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("started"))
    path = tmp_path / "a.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 moveto\n"
    )
    with pytest.raises(BadImage, match=r"a\.png: not an image in a format that Pillow can read"):
        read_image(path)


def test_cmyk_keeps_its_colours(tmp_path):
    Image.new("RGB", (16, 16), (200, 60, 30)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(
        read_image(tmp_path / "a.jpg").getpixel((5, 5)), (200, 60, 30), atol=6
    )


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.array([[0, 257, 12850, 32896, 65535]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
        pixels = np.asarray(read_image(tmp_path / f"a.{suffix}"))
        assert pixels[0, :, 0].tolist() == [0, 1, 50, 128, 255]  # v / 257: 65535 is white
        assert (pixels == pixels[..., :1]).all()


def test_grey_without_a_known_white_is_bad(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="no defined white: save it as 16 bit"):
        read_image(tmp_path / "a.tif")


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 128]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = np.asarray(read_image(tmp_path / "a.png"))[0]
    assert pixels[0].tolist() == list(RED)
    assert pixels[1].tolist() == list(WHITE)
    np.testing.assert_allclose(pixels[2], (255, 127, 127), atol=1)
    Image.fromarray(np.array([[[0, 255], [0, 0]]], dtype=np.uint8)).save(tmp_path / "la.png")
    assert np.asarray(read_image(tmp_path / "la.png"))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_palette_with_transparency_is_laid_on_white(tmp_path, transparency):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=transparency)
    pixels = np.asarray(read_image(tmp_path / "a.png"))[0]
    assert pixels.tolist() == [list(RED), list(WHITE)]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    with Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_allclose(read_image(path).getpixel((8, 8)), RED, atol=6)


@pytest.mark.parametrize(("mode", "suffix"), [("1", "png"), ("L", "png"), ("YCbCr", "tif")])
def test_other_colour_spaces_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 8), WHITE).convert(mode).save(path)
    np.testing.assert_allclose(read_image(path).getpixel((3, 3)), WHITE, atol=2)


def test_one_pixel_is_an_image(tmp_path):
    assert read_image(save(tmp_path / "a.png", GREEN, (1, 1))).getpixel((0, 0)) == GREEN
