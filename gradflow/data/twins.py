"""Find the same picture twice: exactly by its pixels, nearly by its perceptual hash."""

import hashlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

# Two images are near twins if at most this many of the 64 bits of their perceptual hashes differ.
# On 672 distinct photographs (225,456 pairs) every pair up to 8 bits looked at was one picture,
# re-encoded, cropped or with a watermark; at 10 bits one of six was not, at 12 several were not.
NEAR_TWIN_BITS = 8
# The hash is made of a 32 x 32 thumbnail: a smaller image has no detail that could tell it apart.
NEAR_TWIN_SIDE = 32  # px, of the shorter side

_TILE = 1024  # hashes a side: 8 MB of distances, whatever the number of images
_MAX_LINKS = 1_000_000  # links held before they are merged into groups


def content_hash(image: Image.Image) -> bytes:
    """SHA-256 of mode, size and pixels: equal for exact twins, whatever their file format."""
    header = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(header + image.tobytes()).digest()


def perceptual_hash(image: Image.Image) -> int | None:
    """64 bits (pHash): which low frequencies of the image lie above their median.

    Few bits change when an image is re-encoded, resized or slightly cropped. None if the shorter
    side is below `NEAR_TWIN_SIDE`. Method: https://www.hackerfactor.com/blog/?/archives/432 as
    implemented by ImageHash.
    """
    if min(image.size) < NEAR_TWIN_SIDE:
        return None
    import imagehash

    bits = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def group_near(hashes: np.ndarray, n_bits: int) -> np.ndarray:
    """Group 64-bit hashes: two are in one group if a chain of steps of `n_bits` or less joins them.

    `hashes` (n,) uint64. Returns (n,) int64, groups numbered by first appearance. All pairs are
    compared, tile by tile, so time is O(n²) and memory O(n).

    >>> group_near(np.array([0b0000, 0b1111, 0b0001, 0b0011], dtype=np.uint64), n_bits=1)
    array([0, 1, 0, 0])
    """
    distinct, where = np.unique(hashes, return_inverse=True)
    groups = np.arange(len(distinct))
    links: list[np.ndarray] = []
    for found in _close_pairs(distinct, n_bits):
        links.append(found)
        if sum(len(link) for link in links) > _MAX_LINKS:
            groups, links = _join(groups, links), []
    return by_first_appearance(_join(groups, links)[where])


def by_first_appearance(names: np.ndarray) -> np.ndarray:
    """Number groups 0, 1, … in the order in which their first members come.

    >>> by_first_appearance(np.array([7, 3, 7, 9]))
    array([0, 1, 0, 2])
    """
    _, first, where = np.unique(names, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbers: np.ndarray = rank[where]
    return numbers


def _close_pairs(hashes: np.ndarray, n_bits: int) -> Iterator[np.ndarray]:
    """(pairs, 2) positions of hashes at most `n_bits` apart, tile by tile of the upper triangle."""
    for top in range(0, len(hashes), _TILE):
        rows = hashes[top : top + _TILE, None]
        for left in range(top, len(hashes), _TILE):
            n_different = np.bitwise_count(rows ^ hashes[None, left : left + _TILE])
            pairs = np.argwhere(n_different <= n_bits) + (top, left)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            if len(pairs):
                yield pairs


def _join(groups: np.ndarray, links: list[np.ndarray]) -> np.ndarray:
    """Merge groups that a link connects. `groups` (n,) holds numbers below n."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not links:
        return groups
    ends = groups[np.concatenate(links)]
    n = len(groups)
    graph = coo_array((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(n, n))
    merged: np.ndarray = connected_components(graph, directed=False)[1][groups]
    return merged
