"""Images as tensors: decoded once, kept as bytes, augmented and normalised batch by batch."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gradflow.data.audit import Audit, audit
from gradflow.data.sources import Source
from gradflow.data.twins import NEAR_TWIN_BITS

# Mean and standard deviation of ImageNet's red, green and blue, on the scale 0 to 1: those of
# torchvision's pretrained networks and of the studies on the original's photographs.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MEMORY_BUDGET = 4 * 2**30  # bytes of pixels kept in memory; larger sets lie in a temporary file
_ORDER, _AUGMENTATION = 0, 1  # the two random streams of an epoch


@dataclass(frozen=True, eq=False)
class ImageStore:
    """All images of a source: `pixels` (n, 3, size, size) uint8, `labels` (n,) int64.

    A bad image is black: leave it out by `Audit.usable`. Large stores lie in a temporary file
    without a name, which is gone when the store is.
    """

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        n, shape = len(self.labels), tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or shape[:2] != (n, 3) or len(shape) != 4:
            raise ValueError(
                f"Expected `pixels` to be uint8 of shape ({n}, 3, height, width), but got "
                f"{self.pixels.dtype} of {shape}."
            )
        if shape[2] != shape[3]:
            raise ValueError(f"Expected square images, but got {shape[2]} x {shape[3]} px.")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(f"Expected `labels` to be a row of int64, but got {self.labels}.")


@dataclass(frozen=True)
class Augmentation:
    """Mirror with probability `flip`, then turn by an angle uniform in [-degrees, degrees]."""

    flip: float = 0.5
    degrees: float = 15.0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"Expected a probability `flip` from 0 to 1, but got {self.flip}.")
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"Expected `degrees` from 0 to 180, but got {self.degrees}.")

    @property
    def changes_nothing(self) -> bool:
        return self.flip == 0 and self.degrees == 0


@dataclass(frozen=True, eq=False)
class Batch:
    """`images` (b, 3, size, size) float32 normalised, `labels` (b,), both on one device.

    `n_total` counts the images of this batch over all processes, for averages over all of them.
    """

    images: Tensor
    labels: Tensor
    n_total: int


@dataclass(frozen=True, eq=False)
class Batches:
    """The images at `indices` of a store, in batches; `batch_size` counts all processes together.

    Order and augmentation are functions of (seed, epoch, position) alone, never of the global
    random state: every network of a seed sees the same images, an epoch can be repeated exactly,
    and its images do not depend on the number of processes.

    A shuffled epoch leaves out a last batch with fewer than two images per process, because
    BatchNorm cannot normalise one value; another epoch's order has other images there.
    """

    store: ImageStore
    indices: np.ndarray
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 + self.shuffle:
            raise ValueError(
                f"Expected `batch_size` of at least {1 + self.shuffle}, but got {self.batch_size}."
                + (" BatchNorm cannot train on one image." if self.shuffle else "")
            )
        if self.seed < 0:
            raise ValueError(f"Expected a seed of 0 or more, but got {self.seed}.")
        n = len(self.store.labels)
        if not len(self.indices) or self.indices.min() < 0 or self.indices.max() >= n:
            raise ValueError(f"Expected `indices` from 0 to {n - 1}, but got {self.indices}.")

    def __len__(self) -> int:
        """Batches per epoch of one process."""
        return self.n_batches()

    def n_batches(self, world_size: int = 1) -> int:
        """Batches per epoch when `world_size` processes share each batch."""
        n_full, n_last = divmod(len(self.indices), self.batch_size)
        return n_full + (n_last >= (2 * world_size if self.shuffle else 1))

    def batch_sizes(self, world_size: int = 1) -> list[int]:
        """Images of each batch of an epoch, over all processes."""
        starts = range(0, self.n_batches(world_size) * self.batch_size, self.batch_size)
        return [min(self.batch_size, len(self.indices) - start) for start in starts]

    def epoch(
        self,
        index: int,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Iterator[Batch]:
        """The batches of one epoch; rank r of w processes gets positions r, r + w, … of each.

        All ranks get equally many batches. In an unshuffled last batch a rank may get no image.
        """
        if index < 0:
            raise ValueError(f"Expected an epoch index of 0 or more, but got {index}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"Expected a rank from 0 to {world_size - 1}, but got {rank}.")
        if self.shuffle and min(self.batch_size, len(self.indices)) < 2 * world_size:
            raise ValueError(
                f"Expected at least two images per process in a batch, but got "
                f"{min(self.batch_size, len(self.indices))} for {world_size} processes. "
                "Use a larger batch, more images, or fewer processes."
            )
        return self._epoch(index, torch.device(device), rank, world_size, channels_last)

    def _epoch(
        self, index: int, device: torch.device, rank: int, world_size: int, channels_last: bool
    ) -> Iterator[Batch]:
        order = self._order(index)
        transforms = self._transforms(index)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for start in range(0, self.n_batches(world_size) * self.batch_size, self.batch_size):
            mine = slice(start + rank, start + self.batch_size, world_size)
            chosen = torch.from_numpy(order[mine])
            images = _to_unit(self.store.pixels[chosen].to(device, non_blocking=True))
            if transforms is not None:
                images = _resample(images, transforms[mine].to(device, non_blocking=True))
            yield Batch(
                images=normalise(images).contiguous(memory_format=layout),
                labels=self.store.labels[chosen].to(device, non_blocking=True),
                n_total=min(self.batch_size, len(order) - start),
            )

    def _order(self, index: int) -> np.ndarray:
        if not self.shuffle:
            return self.indices
        return self._random(index, _ORDER).permutation(self.indices)

    def _transforms(self, index: int) -> Tensor | None:
        """(n, 2, 3) maps from an output to an input place, by position in the epoch."""
        if self.augmentation is None or self.augmentation.changes_nothing:
            return None
        draws = self._random(index, _AUGMENTATION).random((len(self.indices), 2))
        is_flipped = draws[:, 0] < self.augmentation.flip
        angles = (2 * draws[:, 1] - 1) * self.augmentation.degrees
        return affine(torch.from_numpy(is_flipped), torch.from_numpy(angles))

    def _random(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, index, stream]))


def load_images(
    source: Source,
    image_size: int,
    *,
    memory_budget: int = MEMORY_BUDGET,
    progress: Callable[[int, int], None] | None = None,
    near_bits: int | None = NEAR_TWIN_BITS,
) -> tuple[Audit, ImageStore]:
    """Decode every image once: audit it, and keep it at `image_size` px (squashed to a square).

    More than `memory_budget` bytes of pixels go to a temporary file. `progress` and `near_bits`
    as in `audit`. Raises OSError if the disk has no room for the file.
    """
    if image_size < 1:
        raise ValueError(f"Expected an image size of 1 px or more, but got {image_size}.")
    pixels = _room((len(source.keys), 3, image_size, image_size), memory_budget)

    def keep(i: int, image: Image.Image) -> None:
        pixels[i] = to_uint8(image, image_size).numpy()

    found = audit(source, keep, progress, near_bits=near_bits)
    labels = torch.from_numpy(source.labels)
    return found, ImageStore(torch.from_numpy(pixels), labels, source.class_names)


def to_uint8(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) uint8: squashed to a square, bilinear, antialiased when made smaller."""
    square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def normalise(images: Tensor) -> Tensor:
    """(x - mean) / std per colour, with ImageNet's values, for x in [0, 1]. No unit.

    `images` (..., 3, height, width), uint8 from 0 to 255 or floating point from 0 to 1.

    >>> normalise(torch.zeros(3, 1, 1)).flatten()
    tensor([-2.1179, -2.0357, -1.8044])
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return _to_unit(images).sub(mean).div_(std)


def affine(is_flipped: Tensor, degrees: Tensor) -> Tensor:
    """(n, 2, 3) float32 maps of `affine_grid` that mirror, then turn counter-clockwise.

    They lead from an output place to the input place shown there: with y downwards, first the
    turn undone, [cos -sin; sin cos], then x mirrored.
    """
    turn = torch.deg2rad(degrees.double())
    mirror = 1 - 2 * is_flipped.double()
    zero = torch.zeros_like(turn)
    across = torch.stack([mirror * turn.cos(), -mirror * turn.sin(), zero], dim=-1)
    down = torch.stack([turn.sin(), turn.cos(), zero], dim=-1)
    return torch.stack([across, down], dim=-2).float()


def _resample(images: Tensor, transforms: Tensor) -> Tensor:
    """Images (b, 3, s, s) in [0, 1] moved by (b, 2, 3) maps; black comes in at the corners."""
    if not len(images):
        return images
    grid = functional.affine_grid(transforms, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _to_unit(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float().div_(255)


def _room(shape: tuple[int, ...], memory_budget: int) -> np.ndarray:
    """Zeroed bytes, in memory if they fit the budget, else in a file that no one else can see."""
    n_bytes = int(np.prod(shape, dtype=np.int64))
    if n_bytes <= memory_budget:
        return np.zeros(shape, dtype=np.uint8)
    folder = tempfile.gettempdir()
    n_free = shutil.disk_usage(folder).free
    if n_bytes > n_free:
        raise OSError(
            f"Expected {n_bytes / 2**30:.1f} GiB free in {folder} for the decoded images, but got "
            f"{n_free / 2**30:.1f} GiB. Set TMPDIR to a larger disk, train at a smaller image "
            "size, or raise the memory budget."
        )
    with tempfile.TemporaryFile() as file:  # the map keeps the unnamed file alive after the close
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
