"""Decode any image file to upright RGB, or say what is wrong with it."""

import contextlib
import functools
import importlib
import os
import unicodedata
import warnings
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gradflow.files import decoding

HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
# Formats that Pillow only recognises, or hands to another program.
NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The endings, in lower case, of what can be decoded: Pillow's formats, and with the package
    pillow-heif the HEIC of telephones.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    endings = Image.registered_extensions()
    return frozenset(
        ending for ending, name in endings.items() if name in Image.OPEN and name not in NOT_DECODED
    )


@functools.cache
def _formats() -> list[str]:
    """What a file may be by its content, whatever its ending: EPS would start another program."""
    picture_suffixes()  # registers them
    return [name for name in Image.ID if name not in NOT_DECODED]


def printable(name: str) -> str:
    r"""A file name as text that can be written anywhere: composed Unicode, `\xe9` for other bytes.

    >>> printable("caf\udce9.jpg"), printable("Ka\u0308se.jpg")
    ('caf\\xe9.jpg', 'Käse.jpg')
    """
    if name.isascii():
        return name
    text = os.fsencode(name).decode("utf-8", errors="backslashreplace")
    return unicodedata.normalize("NFC", text)


# Pillow warns from here on and refuses twice as much: a picture takes up to 12 bytes per pixel.
MAX_PIXELS = 89_478_485
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class BadImage(ValueError):
    """A file that cannot be used as an image: which one (`file`), and why (`reason`)."""

    def __init__(self, file: str, reason: str) -> None:
        file = printable(file)
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


def read_image(path: str | PathLike[str]) -> Image.Image:
    """Decode an image file fully: upright, 8-bit RGB, the first frame of an animation.

    The EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled (not
    clipped) to 8 bit. Colour profiles are not applied, as in torchvision. Raises BadImage where
    a file is missing, truncated, not an image, or of more than `MAX_PIXELS` (a JPEG of twice).
    """
    file = fspath(path)
    ending = Path(file).suffix.lower()
    is_known = ending in picture_suffixes()  # which also registers HEIC
    before = decoding.set(printable(file))
    try:
        with Image.open(file, formats=_formats()) as image:
            _bounded(image)
            image.load()  # all pixels: a header alone, or `verify`, passes truncated JPEGs
            return _to_rgb(_upright(image))
    except UnidentifiedImageError as error:
        is_heif = ending in HEIF_SUFFIXES and not is_known
        needs = ": HEIC needs the package pillow-heif" if is_heif else ""
        raise BadImage(file, f"not an image in a format that Pillow can read{needs}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(file, f"too many pixels to decode safely ({error})") from error
    except FileNotFoundError as error:
        raise BadImage(file, "no such file") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        raise BadImage(file, str(error) or type(error).__name__) from error
    finally:
        decoding.reset(before)


def _bounded(image: Image.Image) -> None:
    """A JPEG can be read in a half, a fourth or an eighth of its size; another format cannot."""
    width, height = image.size
    if width * height <= MAX_PIXELS:
        return
    image.draft(image.mode, (width // 2, height // 2))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels exceed the limit of {MAX_PIXELS / 1e6:.0f} million; make "
            "it smaller"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a malformed EXIF block tells no orientation, and the pixels are good
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    white = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(white, coloured).convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey, 0 to 65535, to 0 to 255: Pillow's `convert` clips at 255 instead."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"32-bit grey (mode {image.mode}) has no defined white: save it as 16 bit")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))
