"""Batches are functions of (seed, epoch, position), and their pixels are torchvision's."""

import gc
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as vision

from gradflow.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    Batches,
    ImageStore,
    Source,
    load_images,
    normalise,
    open_source,
    to_uint8,
)


def noise(n: int, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def store_of(n: int, size: int = 16) -> ImageStore:
    return ImageStore(noise(n, size), torch.arange(n) % 3, ("a", "b", "c"))


def numbered(n: int) -> ImageStore:
    """Labels that tell the images apart."""
    return ImageStore(noise(n, 4), torch.arange(n), tuple(map(str, range(n))))


def labels_of(batches: Batches, epoch: int = 0, **kwargs: int) -> list[list[int]]:
    return [batch.labels.tolist() for batch in batches.epoch(epoch, **kwargs)]


# --- pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 32, 50])
def test_an_image_is_resized_as_torchvision_does(size):
    array = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    expected = vision.pil_to_tensor(v2.Resize((size, size))(image))
    assert torch.equal(to_uint8(image, size), expected)


def test_normalise_is_torchvisions_for_bytes_and_for_floats():
    pixels = noise(3)
    expected = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)(pixels / 255)
    torch.testing.assert_close(normalise(pixels), expected)
    floats = pixels / 255
    torch.testing.assert_close(normalise(floats), expected)
    torch.testing.assert_close(normalise(pixels[0]), expected[0])
    assert torch.equal(floats, pixels / 255)  # the argument is left as it was


def test_augmented_images_are_those_of_the_drawn_order_flips_and_angles():
    """From the generator's documented seeds to the pixels, computed by torchvision instead: they
    depend on seed, epoch and position alone, and black comes in at the corners."""
    store, augmentation = store_of(12), Augmentation(0.5, 180.0)
    batches = Batches(store, np.arange(12), 5, seed=7, shuffle=True, augmentation=augmentation)
    order = np.random.default_rng(np.random.SeedSequence([7, 2, 0])).permutation(np.arange(12))
    draws = np.random.default_rng(np.random.SeedSequence([7, 2, 1])).random((12, 2))
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    images = torch.cat([batch.images for batch in batches.epoch(2)])
    assert torch.equal(torch.random.get_rng_state(), state)  # batches do not draw from it
    for position, (index, (coin, turn)) in enumerate(zip(order, draws, strict=True)):
        image = store.pixels[index] / 255
        image = vision.horizontal_flip(image) if coin < 0.5 else image
        angle = float((2 * turn - 1) * 180)
        image = vision.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
        torch.testing.assert_close(images[position], normalise(image), atol=1e-3, rtol=0)


def test_without_augmentation_the_pixels_are_the_stored_ones_and_sampling_is_skipped():
    store = store_of(6)
    for augmentation in (None, Augmentation(0.0, 0.0)):
        batches = Batches(store, np.array([4, 1, 5]), 2, augmentation=augmentation)
        images = torch.cat([batch.images for batch in batches.epoch(0)])
        assert torch.equal(images, normalise(store.pixels[[4, 1, 5]]))


def test_batches_come_in_the_layout_asked_for():
    batches = Batches(store_of(4), np.arange(4), 4, augmentation=Augmentation())
    batch = next(batches.epoch(0))
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert next(batches.epoch(0, channels_last=False)).images.is_contiguous()
    assert batch.labels.dtype == torch.int64


# --- order ---------------------------------------------------------------------------------


def test_an_unshuffled_epoch_is_in_the_order_of_the_indices_and_complete():
    batches = Batches(numbered(9), np.array([7, 2, 5, 0, 8]), 2)
    assert labels_of(batches) == [[7, 2], [5, 0], [8]]
    assert len(batches) == 3
    assert [batch.n_total for batch in batches.epoch(0)] == [2, 2, 1]


@pytest.mark.parametrize(("n", "expected"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2])])
def test_a_shuffled_epoch_leaves_out_a_last_batch_of_one(n, expected):
    batches = Batches(numbered(n), np.arange(n), 4, shuffle=True)
    assert [len(labels) for labels in labels_of(batches)] == expected
    assert len(batches) == len(expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batches_of_one(world_size):
    batches = Batches(store_of(26), np.arange(26), 10, shuffle=True, augmentation=Augmentation())
    ranks = [list(batches.epoch(5, rank=r, world_size=world_size)) for r in range(world_size)]
    alone = list(batches.epoch(5))
    assert len(alone) == 3
    assert {len(rank) for rank in ranks} == {batches.n_batches(world_size)} == {3}
    for k, whole in enumerate(alone):
        for r, rank in enumerate(ranks):
            torch.testing.assert_close(rank[k].images, whole.images[r::world_size])
            assert rank[k].labels.tolist() == whole.labels[r::world_size].tolist()
            assert rank[k].n_total == whole.n_total == len(whole.labels)


def test_every_process_gets_two_images_or_the_batch_is_left_out():
    batches = Batches(numbered(13), np.arange(13), 10, shuffle=True)
    assert len(batches) == 2
    assert batches.n_batches(2) == 1  # three images left: one process would get a single one
    assert [len(b) for b in labels_of(batches, rank=1, world_size=2)] == [5]
    with pytest.raises(ValueError, match="two images per process .* got 10 for 6 processes"):
        batches.epoch(0, rank=0, world_size=6)


def test_all_ranks_get_as_many_unshuffled_batches_even_empty_ones():
    batches = Batches(numbered(5), np.arange(5), 4, augmentation=Augmentation())
    parts = [labels_of(batches, rank=r, world_size=3) for r in range(3)]
    assert parts == [[[0, 3], [4]], [[1], []], [[2], []]]


STORE = store_of(5)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("`batch_size` of at least 1", lambda: Batches(STORE, np.arange(5), 0)),
        ("BatchNorm cannot", lambda: Batches(STORE, np.arange(5), 1, shuffle=True)),
        ("`indices` from 0 to 4", lambda: Batches(STORE, np.array([5]), 1)),
        ("`indices` from 0 to 4", lambda: Batches(STORE, np.array([], dtype=int), 1)),
        ("seed of 0 or more", lambda: Batches(STORE, np.arange(5), 1, seed=-1)),
        ("epoch index", lambda: Batches(STORE, np.arange(5), 1).epoch(-1)),
        (
            "rank from 0 to 1",
            lambda: Batches(STORE, np.arange(5), 2).epoch(0, rank=2, world_size=2),
        ),
        ("probability `flip`", lambda: Augmentation(flip=1.5)),
        ("`degrees` from 0 to 180", lambda: Augmentation(degrees=-1)),
        ("uint8 of shape", lambda: ImageStore(torch.zeros(5, 3, 4, 4), STORE.labels, ("a", "b"))),
        ("square", lambda: ImageStore(noise(5)[..., :3], STORE.labels, ("a", "b"))),
    ],
)
def test_wrong_settings_are_errors_at_once(message, make):
    with pytest.raises(ValueError, match=message):
        make()


# --- loading -------------------------------------------------------------------------------


def test_digits_are_loaded_audited_and_enlarged_in_one_pass():
    source = open_source("digits")
    found, store = load_images(source, 32)
    assert found.usable.all()
    assert store.pixels.shape == (1797, 3, 32, 32)
    assert store.labels.tolist() == source.labels.tolist()
    for i in (0, 1000):
        assert torch.equal(store.pixels[i], to_uint8(source.read(i), 32))


def made_source(tmp_path: Path) -> Source:
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (40, 20), colour).save(tmp_path / name / "1.png")
    (tmp_path / "b" / "2.png").write_text("no image")
    return open_source(tmp_path)


def test_a_set_above_the_budget_lies_in_a_file_that_is_gone_with_it(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    source = made_source(tmp_path / "data")
    _, in_memory = load_images(source, 16)
    found, on_disk = load_images(source, 16, memory_budget=100)
    gc.collect()
    assert torch.equal(on_disk.pixels, in_memory.pixels)
    assert on_disk.pixels[0, :, 8, 8].tolist() == [255, 0, 0]
    assert found.usable.tolist() == [True, True, False]
    assert (on_disk.pixels[2] == 0).all()  # a bad image is black
    assert list(disk.iterdir()) == []


def test_a_full_disk_is_an_error_before_anything_is_decoded(tmp_path, monkeypatch):
    source = made_source(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=50))
    with pytest.raises(OSError, match="Set TMPDIR to a larger disk"):
        load_images(source, 16, memory_budget=100)
    with pytest.raises(ValueError, match="image size of 1 px or more"):
        load_images(source, 0)
