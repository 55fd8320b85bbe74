"""The audit finds what would spoil a measurement: bad files, twins, conflicting labels."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradflow.data import NEAR_TWIN_BITS, Source, audit, open_source, split
from gradflow.data.twins import by_first_appearance, content_hash, group_near, perceptual_hash

# The original study's photographs are not part of the repository: name their folder to test them.
PHOTOGRAPHS = Path(os.environ.get("GRADFLOW_PHOTOGRAPHS", "photographs"))


def scene(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A smooth random picture: like a photograph, most of it is in the low frequencies."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def source_of(images: list[Image.Image], labels: list[int], n_classes: int = 2) -> Source:
    return Source(
        name="made",
        class_names=tuple("abcdefgh"[:n_classes]),
        keys=tuple(str(i) for i in range(len(images))),
        labels=np.array(labels),
        read=lambda i: images[i],
        image_size=32,
        mirror=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with each thing an audit must find."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    scene(0).save(tmp_path / "a" / "0.png")
    scene(0).save(tmp_path / "a" / "0 as bmp.bmp")  # other bytes, same pixels
    scene(0).save(tmp_path / "b" / "0.png")  # the same with another label
    scene(1).save(tmp_path / "a" / "1.png")
    scene(1).save(tmp_path / "a" / "1 again.jpg", quality=60)  # re-encoded
    scene(2).save(tmp_path / "b" / "2.png")
    whole = (tmp_path / "a" / "1 again.jpg").read_bytes()
    (tmp_path / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "page.jpg").write_text("<html>404</html>")
    return tmp_path


def test_bad_files_twins_and_conflicts_are_found(folder):
    found = audit(open_source(folder))
    assert [file.key for file in found.bad] == ["b/cut.jpg", "b/page.jpg"]
    assert "truncated" in found.bad[0].reason
    assert "not an image" in found.bad[1].reason
    assert found.usable.tolist() == [True] * 6 + [False] * 2
    assert found.exact_twins == (("a/0 as bmp.bmp", "a/0.png", "b/0.png"),)
    assert found.near_twins == (("a/1 again.jpg", "a/1.png"),)
    assert found.conflicts == ({"a/0 as bmp.bmp": "a", "a/0.png": "a", "b/0.png": "b"},)
    assert found.content.tolist() == [0, 0, 1, 2, 0, 3, -1, -1]
    assert found.near.tolist() == [0, 0, 1, 1, 0, 2, -1, -1]
    assert (found.n_images, found.n_distinct, found.n_near_distinct) == (8, 4, 3)
    assert found.class_counts == {"a": 4, "b": 4}
    assert found.sizes[:6].tolist() == [[96, 64]] * 6


def test_missing_files_are_bad_and_unlabelled_ones_are_listed(tmp_path):
    for name in "123":
        scene(int(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "x.csv").write_text("filename,label\n1.png,a\n2.png,b\n9.png,b\n")
    found = audit(open_source(tmp_path))
    assert [(file.key, file.reason) for file in found.bad] == [("9.png", "no such file")]
    assert found.unlabelled == ("3.png",)
    assert found.usable.all()


def test_a_source_of_bad_files_only_is_reported_and_cannot_be_split(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_text("no image")
    source = open_source(tmp_path)
    found = audit(source)
    assert (found.n_distinct, len(found.bad), found.to_json()["sizes"]) == (0, 2, {})
    with pytest.raises(ValueError, match=r"all 2 files are unreadable. The first: a/1.jpg"):
        split(found, source.labels)


def test_each_image_is_read_once_and_at_most_one_per_thread_is_held():
    n_reads, n_held, most_held = [0] * 40, 0, 0
    lock = threading.Lock()

    def read(i: int) -> Image.Image:
        nonlocal n_held, most_held
        with lock:
            n_reads[i] += 1
            n_held += 1
            most_held = max(most_held, n_held)
        return scene(i)

    def let_go(i: int, image: Image.Image) -> None:
        nonlocal n_held
        assert image.tobytes() == scene(i).tobytes()
        with lock:
            n_held -= 1

    source = source_of([scene(0)] * 40, [0, 1] * 20)
    progress: list[tuple[int, int]] = []
    counted = Source(**(vars(source) | {"read": read}))
    audit(counted, let_go, lambda n_done, n: progress.append((n_done, n)))
    assert n_reads == [1] * 40
    assert most_held <= (os.cpu_count() or 1)
    assert progress == [(k, 40) for k in range(1, 41)]


def test_an_error_of_the_caller_is_not_swallowed_and_stops_the_decoding():
    n_reads = 0

    def read(i: int) -> Image.Image:
        nonlocal n_reads
        n_reads += 1
        return scene(0)

    def fail(n_done: int, n: int) -> None:
        raise KeyboardInterrupt

    source = source_of([scene(0)] * 3000, [0, 1] * 1500)
    with pytest.raises(KeyboardInterrupt):
        audit(Source(**(vars(source) | {"read": read})), progress=fail)
    assert n_reads < 3000


def test_same_pixels_in_another_shape_are_another_picture():
    wide, high = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 4), "red")
    assert wide.tobytes() == high.tobytes()
    assert content_hash(wide) != content_hash(high)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_change_keeps_the_perceptual_hash_and_another_picture_does_not(seed):
    image = scene(seed, 192, 128)
    smaller = image.resize((96, 64), Image.Resampling.BILINEAR)
    brighter = image.point(lambda value: min(255, value + 10))
    original = perceptual_hash(image)
    for changed in (smaller, brighter):
        assert (original ^ perceptual_hash(changed)).bit_count() <= NEAR_TWIN_BITS
    assert (original ^ perceptual_hash(scene(seed + 100))).bit_count() > NEAR_TWIN_BITS


def test_near_twins_of_tiny_images_are_not_looked_for():
    tiny = [scene(0, 31, 200), scene(0, 200, 31), Image.new("RGB", (8, 8))]
    assert [perceptual_hash(image) for image in tiny] == [None, None, None]
    found = audit(source_of([tiny[2], tiny[2], Image.new("RGB", (8, 8), "white")], [0, 1, 0]))
    assert found.content.tolist() == found.near.tolist() == [0, 0, 1]


def test_the_search_for_near_twins_can_be_turned_off_or_made_stricter(folder):
    source = open_source(folder)
    assert audit(source, near_bits=None).near_twins == ()
    assert audit(source, near_bits=64).n_near_distinct == 1
    with pytest.raises(ValueError, match="near_bits from 0 to 64"):
        audit(source, near_bits=65)


@pytest.mark.parametrize("n_bits", [0, 3, 8])
def test_groups_of_hashes_are_those_of_a_plain_search(n_bits, monkeypatch):
    monkeypatch.setitem(group_near.__globals__, "_TILE", 7)  # tiles that do not divide the number
    monkeypatch.setitem(group_near.__globals__, "_MAX_LINKS", 5)  # several merges
    random = np.random.default_rng(0)
    centres = random.integers(0, 2**64, 12, dtype=np.uint64)
    flips = np.uint64(1) << random.integers(0, 64, (60, 3), dtype=np.uint64)
    hashes = centres[random.integers(0, 12, 60)] ^ np.bitwise_xor.reduce(flips, axis=1)

    group = list(range(60))
    for _ in range(60):  # let the lower number spread over every link until nothing changes
        for i in range(60):
            for j in range(60):
                if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= n_bits:
                    group[i] = min(group[i], group[j])
    assert group_near(hashes, n_bits).tolist() == by_first_appearance(np.array(group)).tolist()
    assert group_near(hashes[:0], n_bits).tolist() == []


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="the original study's photographs are absent")
def test_the_original_studys_photographs_are_672_pictures_and_its_split_leaks():
    """The study's test accuracy measures memory as well: over half of its test set is in train."""
    source = open_source(PHOTOGRAPHS)
    found = audit(source)
    assert (found.n_images, found.n_distinct, found.bad) == (1107, 672, ())
    assert found.class_counts == {
        "bakso": 220, "gado_gado": 215, "nasi_goreng": 233, "rendang": 227, "soto_ayam": 212,
    }  # fmt: skip
    assert found.conflicts == found.near_conflicts == ()
    for seed in range(20):
        random = split(found, source.labels, kind="random", seed=seed)
        assert len(random.test) == 222
        assert 0.49 <= len(random.contaminated) / 222 <= 0.63
        grouped = split(found, source.labels, seed=seed)
        assert len(grouped.near_contaminated) == 0
