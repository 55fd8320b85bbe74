"""Small data that the tests make for themselves."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Keras reads these when it is imported. It writes a settings file into its folder, and does without
# one where that is no folder.
os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_HOME"] = os.devnull

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[[Path], Path]:
    """Makes three class folders with 20 noisy pictures of 12 px each; always the same."""

    def draw(root: Path) -> Path:
        random = np.random.default_rng(0)
        for index, name in enumerate(CLASSES):
            folder = root / "pictures" / name
            folder.mkdir(parents=True)
            for number in range(20):
                pixels = random.integers(0, 90, (12, 12, 3), dtype=np.uint8)
                pixels[..., 2 - index] += 120
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        return root / "pictures"

    return draw


@pytest.fixture
def pictures(draw_pictures: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A folder of three class folders with 20 noisy pictures of 12 px each."""
    return draw_pictures(tmp_path)
