"""A small picture in the terminal: two pixels in each character, or shades where colour is off."""

from collections.abc import Iterator

import numpy as np
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

HALF_BLOCK = "▀"  # its own colour above, the background's below
SHADES = " ░▒▓█"
SIDE = 24  # pixels a side: two such pictures stand in 80 columns, also in shades
HOT = np.array([255, 96, 0])  # the colour of the strongest place, over the photograph in grey
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue in grey: ITU-R BT.601


class BlockPicture:
    """A map over its photograph, for rich. `photo` (S, S, 3) uint8, `values` (S, S), any scale.

    With colours the map lies over the photograph in grey; without (a file, a pipe, NO_COLOR) its
    strength stands alone, as shades. Values below zero count as zero.
    """

    def __init__(self, photo: np.ndarray, values: np.ndarray, side: int = SIDE) -> None:
        if photo.shape != (*values.shape, 3):
            raise ValueError(
                f"Expected a photograph of shape {(*values.shape, 3)} for a map of "
                f"{values.shape}, but got {photo.shape}."
            )
        self.side = min(side, len(values)) // 2 * 2 or 2
        self.grey = shrink(photo @ LUMA, self.side)
        strength = shrink(np.nan_to_num(np.clip(values, 0, None)), self.side)
        self.strength = strength / (strength.max() or 1.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = self._shades() if console.color_system is None else self._colours()
        for row in rows:
            yield from row
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.side, self.side)

    def _shades(self) -> Iterator[list[Segment]]:
        """A character is twice as high as wide: it stands for two pixels, the mean of both."""
        for upper, lower in zip(self.strength[::2], self.strength[1::2], strict=True):
            levels = np.rint((upper + lower) / 2 * (len(SHADES) - 1)).astype(int)
            yield [Segment("".join(SHADES[level] for level in levels))]

    def _colours(self) -> Iterator[list[Segment]]:
        share = self.strength[..., None]
        pixels = np.rint((1 - share) * self.grey[..., None] + share * HOT).astype(int)
        for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
            yield [
                Segment(HALF_BLOCK, Style(color=_color(above), bgcolor=_color(below)))
                for above, below in zip(upper, lower, strict=True)
            ]


def shrink(values: np.ndarray, side: int) -> np.ndarray:
    """(S, S) to (side, side): the mean over the pixels of each cell; larger ones are repeated.

    >>> shrink(np.array([[0, 2, 1, 1], [2, 0, 1, 1], [4, 4, 8, 8], [4, 4, 8, 8]]), 2)
    array([[1., 1.],
           [4., 8.]])
    """
    edges = np.linspace(0, len(values), side + 1)
    first = np.floor(edges[:-1]).astype(int)
    last = np.maximum(np.ceil(edges[1:]).astype(int), first + 1)
    rows = np.stack([values[a:b].mean(axis=0) for a, b in zip(first, last, strict=True)])
    return np.stack([rows[:, a:b].mean(axis=1) for a, b in zip(first, last, strict=True)], axis=1)


def _color(rgb: np.ndarray) -> Color:
    return Color.from_rgb(*map(int, rgb))
