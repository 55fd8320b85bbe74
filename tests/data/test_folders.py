"""Folders as people have them: tables of other programs, other endings, odd names."""

import gzip
import json
import os
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import gradflow.data.files
from gradflow.data import BadImage, Source, audit, open_source, read_image
from gradflow.data.photos import NOT_DECODED, picture_suffixes


def save(path: Path, *, seed: int = 0, form: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=form)
    return path


def labels_of(source: Source) -> dict[str, str]:
    return {
        key: source.class_names[label]
        for key, label in zip(source.keys, source.labels.tolist(), strict=True)
    }


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    """Pictures in two folders that are no classes."""
    for folder in ("batch_1", "batch_2"):
        for i in range(4):
            save(tmp_path / folder / f"{i}.jpg")
    return tmp_path


ROWS = [(f"{folder}/{i}", "cat" if i % 2 else "dog") for folder in ("batch_1", "batch_2")
        for i in range(4)]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "separator", "ending", "encoding"),
    [
        ("filename;label", ";", ".jpg", "utf-8"),
        ("filename\tlabel", "\t", ".jpg", "utf-8"),
        ("image,class", ",", ".jpg", "utf-8"),
        ("file,target", ",", ".jpg", "utf-8"),
        ("id,label", ",", "", "utf-8"),  # the ids of Kaggle have no ending
        ("id,breed", ",", "", "utf-8"),  # the only other column
        ('"Image Path";"Class Name"', ";", ".JPG", "utf-8-sig"),
        ("filename\tlabel", "\t", ".jpg", "utf-16"),  # "Unicode text" of Excel
        ("sep=;\nfilename;label", ";", ".jpg", "utf-8"),
        ("image|category", "|", ".jpg", "utf-8"),
    ],
)
def test_tables_of_other_programs_are_read_where_they_are_beyond_doubt(
    batches, header, separator, ending, encoding
):
    lines = [header, *(f'"{name}{ending}"{separator}"{label}"' for name, label in ROWS)]
    (batches / "labels.csv").write_text("\n".join(lines), encoding=encoding)
    source = open_source(batches)
    assert labels_of(source) == {f"{name}.jpg": label for name, label in ROWS}
    assert source.labels_from.startswith("labels.csv, columns ")
    assert open_source(batches / "labels.csv").keys == source.keys


def test_what_was_taken_for_what_is_said(batches):
    (batches / "labels.tsv").write_text("image\tdx\n" + "\n".join(map("\t".join, ROWS)))
    assert open_source(batches).labels_from == (
        "labels.tsv, columns image and dx, separated by tabs"
    )


def _sheet(folder: Path) -> None:
    with zipfile.ZipFile(folder / "labels.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        strings = "".join(f"<t>{name}.jpg</t><t>{label}</t>" for name, label in ROWS)
        book.writestr("xl/sharedStrings.xml", f"<sst>{strings}</sst>")


def _other(name: str, pack: Callable[[str], bytes]) -> Callable[[Path], None]:
    text = "".join(f"{picture}.jpg: {label}\n" for picture, label in ROWS)
    return lambda folder: (folder / name).write_bytes(pack(text))


def _parquet(folder: Path) -> None:
    columns = {"file": [f"{name}.jpg" for name, _ in ROWS], "label": [one for _, one in ROWS]}
    pq.write_table(pa.table(columns), folder / "labels.parquet")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: _table(f / "a.csv", "image,class,target", ",", 3), "image, class, target .*com"),
        (lambda f: _table(f / "a.csv", "image;sort;kind", ";", 3), "image, sort, kind .*semicol"),
        (lambda f: _table(f / "a.csv", None, ",", 2), "first line is no header .*commas"),
        (lambda f: _table(f / "a.txt", None, " ", 2), "first line is no header .*spaces"),
        (lambda f: _table(f / "a.txt", "filename:label", ":", 2), "filename, label .*colons"),
        (_sheet, "labels.xlsx, .* it is no table of text. Save it as CSV"),
        (_other("labels.json", lambda text: json.dumps(text.split()).encode()), "labels.json, "),
        (_other("labels.yaml", str.encode), "labels.yaml, "),
        (_other("labels.csv.gz", lambda text: gzip.compress(text.encode())), "labels.csv.gz, "),
        (_parquet, "labels.parquet, .* Save it as CSV"),
    ],
)
def test_a_label_table_that_is_visible_but_cannot_be_read_is_refused(batches, write, message):
    write(batches)
    with pytest.raises(ValueError, match=message):
        open_source(batches)


def _table(path: Path, header: str | None, separator: str, n: int) -> None:
    rows = [separator.join([f"{name}.jpg", *[label] * (n - 1)]) for name, label in ROWS]
    path.write_text("\n".join([*([header] if header else []), *rows]))


def test_tables_inside_the_class_folders_are_seen_too(batches):
    for folder in ("batch_1", "batch_2"):
        _table(batches / folder / "labels.csv", "image,class,target", ",", 3)
        text = (batches / folder / "labels.csv").read_text().replace(f"{folder}/", "")
        (batches / folder / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match="batch_1/labels.csv, which names the pictures"):
        open_source(batches)


def test_files_that_label_nothing_do_not_stand_in_the_way(batches):
    (batches / "prices.csv").write_text("dish,price\nsoto,3\nbakso,4\n")
    (batches / "SHA256SUMS.txt").write_text("\n".join(f"{i:x}f {n}.jpg" for i, (n, _) in
                                                      enumerate(ROWS)))  # fmt: skip
    (batches / "list.txt").write_text("\n".join(f"{name}.jpg" for name, _ in ROWS))
    (batches / "README.md").write_text("two batches: batch_1/0.jpg")
    (batches / "batch_1" / "0.json").write_text('{"file": "0.jpg", "next": "1.jpg"}')
    source = open_source(batches)
    assert source.class_names == ("batch_1", "batch_2")
    assert source.unread == {".txt": 2, ".csv": 1, ".md": 1, ".json": 1}


def test_pictures_may_lie_in_several_folders_under_names_of_their_own(tmp_path):
    save(tmp_path / "part_1" / "A1.jpg")
    save(tmp_path / "part_2" / "A2.jpg")
    (tmp_path / "meta.csv").write_text("image_id,dx\na1,nv\na2,mel\n")
    assert labels_of(open_source(tmp_path)) == {"part_1/A1.jpg": "nv", "part_2/A2.jpg": "mel"}
    save(tmp_path / "part_2" / "A1.jpg")
    with pytest.raises(ValueError, match=r"one picture of the name a1, but got .*part_1/A1.jpg"):
        open_source(tmp_path)


def test_a_table_of_train_does_not_borrow_pictures_of_test(tmp_path):
    for name in ("train/1.jpg", "train/2.jpg", "test/3.jpg"):
        save(tmp_path / name)
    (tmp_path / "train.csv").write_text("id,label\n1,a\n2,b\n3,a\n")
    (tmp_path / "test.csv").write_text("id\n3\n")
    source = open_source(tmp_path)
    assert source.keys == ("train/1.jpg", "train/2.jpg")
    assert source.missing == ("train/3",)


def test_two_names_of_one_file_may_not_bear_two_labels(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "b.jpg")
    (tmp_path / "t.csv").write_text("filename,label\na.jpg,x\nb.jpg,y\nA.JPG,x\n")
    assert labels_of(open_source(tmp_path)) == {"a.jpg": "x", "b.jpg": "y"}
    (tmp_path / "t.csv").write_text("filename,label\na.jpg,x\nb.jpg,y\na,y\n")
    with pytest.raises(ValueError, match="'x' in line 2 and as 'y' in line 4"):
        open_source(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_decomposed_names_are_found_and_shown_composed(tmp_path, form):
    save(tmp_path / unicodedata.normalize(form, "Käse.jpg"))
    save(tmp_path / "b.jpg")
    (tmp_path / "t.csv").write_text("filename,label\nKäse.jpg,x\nb.jpg,y\n", encoding="utf-8")
    source = open_source(tmp_path)
    assert source.keys == ("Käse.jpg", "b.jpg")
    assert source.unlabelled == ()
    assert source.read(0).size == (8, 8)


def test_class_folders_that_differ_in_the_unicode_form_only_are_one_class(tmp_path):
    for i, form in enumerate(("NFC", "NFD")):
        save(tmp_path / unicodedata.normalize(form, "Käse") / f"{i}.jpg")
    save(tmp_path / "Brot" / "0.jpg")
    source = open_source(tmp_path)
    assert source.class_names == ("Brot", "Käse")
    assert source.labels.tolist() == [0, 1, 1]


def test_names_in_another_encoding_are_carried_through_as_text(tmp_path):
    save(tmp_path / "b" / "0.jpg")
    folder = tmp_path / os.fsdecode(b"\xe4")
    save(folder / "0.jpg").rename(folder / os.fsdecode(b"caf\xe9.jpg"))
    source = open_source(tmp_path)
    assert source.class_names == ("\\xe4", "b")
    assert source.keys == ("\\xe4/caf\\xe9.jpg", "b/0.jpg")
    assert audit(source).usable.all()
    with pytest.raises(BadImage, match=r"d\\xe9\.jpg: no such file") as caught:
        read_image(os.fsdecode(b"d\xe9.jpg"))
    assert caught.value.file.encode() == b"d\\xe9.jpg"


def test_the_files_of_systems_are_ignored_everywhere(tmp_path):
    save(tmp_path / "a" / "0.jpg")
    save(tmp_path / "b" / "0.jpg")
    for place in ("@eaDir/a", "a/@eaDir/0.jpg", "__MACOSX/a", "a/.ipynb_checkpoints", "#recycle",
                  "b/$RECYCLE.BIN", "a/.AppleDouble", "$WinREAgent", "found.000", "FOUND.012",
                  "@__thumb", "Recovered Files", "_gsdata_", "a/_gsdata_/_saved_", "lost+found",
                  "System Volume Information", ".dropbox.cache", ".stversions", ".Trash-1000",
                  "RecycleBin.ffs_tmp", "LOST.DIR", "RECYCLER", "~snapshot"):  # fmt: skip
        save(tmp_path / place / "1.jpg")
    for name in ("Thumbs.db", "a/desktop.ini", "a/.DS_Store", "b/._0.jpg", "~$t.csv",
                 "a/Picasa.ini", "sync.ffs_db", "b/~syncthing~0.jpg"):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
    source = open_source(tmp_path)
    assert (source.keys, source.unread) == (("a/0.jpg", "b/0.jpg"), {})
    (tmp_path / "t.csv").write_text("filename,label\na/0.jpg,x\nb/0.jpg,y\n")
    assert open_source(tmp_path).unlabelled == ()


def test_what_pillow_reads_is_read_and_the_rest_is_counted_by_ending(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    picture_suffixes.cache_clear()
    save(tmp_path / "a" / "0.jfif", form="JPEG")
    save(tmp_path / "b" / "0.AVIF")
    for name in ("a/IMG_1.HEIC", "b/IMG_2.heic", "a/raw.CR2", "b/LICENSE"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    source = open_source(tmp_path)
    assert source.keys == ("a/0.jfif", "b/0.AVIF")
    assert source.unread == {".heic": 2, ".cr2": 1, "": 1}
    assert audit(source).to_json()["unread"] == source.unread
    with pytest.raises(BadImage, match="HEIC needs the package pillow-heif"):
        read_image(tmp_path / "a" / "IMG_1.HEIC")
    (tmp_path / "b" / "0.AVIF").unlink()
    with pytest.raises(ValueError, match=r"none in b \(1 \.heic, 1 without .* needs the package"):
        open_source(tmp_path)


def test_heic_is_read_where_its_package_is_there(tmp_path, monkeypatch):
    def register() -> None:
        monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")

    heif = SimpleNamespace(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", heif)
    picture_suffixes.cache_clear()
    for name in ("a", "b"):
        save(tmp_path / name / "0.HEIC", form="PNG")
    try:
        assert open_source(tmp_path).keys == ("a/0.HEIC", "b/0.HEIC")
    finally:
        monkeypatch.undo()
        picture_suffixes.cache_clear()


def test_every_format_that_pillow_decodes_by_itself_is_a_picture():
    endings = Image.registered_extensions()
    ours = picture_suffixes()
    assert {".jpg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm"} <= ours
    assert not {endings[one] for one in ours} & NOT_DECODED
    stubs = {name for name, (factory, _) in Image.OPEN.items()
             if "Stub" in str(getattr(factory, "__mro__", ""))}  # fmt: skip
    assert stubs <= NOT_DECODED, "a stub only recognises a format"


def test_links_are_followed_also_in_a_circle(tmp_path):
    save(tmp_path / "elsewhere" / "0.jpg")
    save(tmp_path / "data" / "b" / "0.jpg")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b" / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = open_source(tmp_path / "data")
    assert source.keys == ("a/0.jpg", "b/0.jpg", "b/lost.jpg")
    assert [bad.reason for bad in audit(source).bad] == ["no such file"]


def test_classes_one_folder_deeper_are_pointed_at(tmp_path):
    save(tmp_path / "images" / "a" / "0.jpg")
    save(tmp_path / "images" / "b" / "0.jpg")
    with pytest.raises(ValueError, match=r"got images alone, which contains the folders a, b\."):
        open_source(tmp_path)


def test_a_disk_is_no_folder_of_pictures(batches, monkeypatch):
    monkeypatch.setattr(gradflow.data.files, "MOST_OTHERS", 50)
    (batches / "system").mkdir()
    for i in range(51):
        (batches / "system" / f"{i}.so").touch()
    with pytest.raises(ValueError, match=r"but \d+ of the first \d+ files in .* are pictures"):
        open_source(batches)


def test_a_long_look_through_a_folder_is_said(batches, monkeypatch, caplog):
    monkeypatch.setattr(gradflow.data.files, "SAID_EVERY", -1.0)
    gradflow.data.files.files_in(batches)
    assert f"Looking through {batches}: " in caplog.text


def test_a_folder_that_may_not_be_read_is_named(batches, monkeypatch):
    (batches / "closed").mkdir()
    scan = os.scandir

    def refused(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match="closed says: Permission denied"):
        gradflow.data.files.files_in(batches)
