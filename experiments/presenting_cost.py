"""What it costs to look: the report of a long study, and maps for a folder of pictures.

Claims, on 2 cores: the report of 50 epochs, 5 seeds and 2 networks is written in under 30 s and is
smaller than 15 MB; Grad-CAM maps of 5 classes for 50 pictures at 224 px by a ResNet-34 take less
than 60 s. A narrow network makes the first run affordable: the report draws numbers per layer, of
which it has as many as a wide one.

    python experiments/presenting_cost.py           # trains for 20 to 40 minutes first

What is finished in --out is not trained again. Nothing else may run meanwhile.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image
from trained import begun_in, finished, gradflow

REPEATS = 2
LONG = (
    "--data", "digits", "--arch", "both", "--width", "0.25", "--epochs", "50", "--seeds", "5",
    "--lr", "6e-4", "--schedule", "step",
    "--patience", "0", "--log-grads", "--no-rivals", "--checkpoint-budget", "0", "--wandb", "off",
)  # fmt: skip
LARGE = (
    "--arch", "resnet_34", "--image-size", "224", "--epochs", "1", "--batch-size", "20",
    "--wandb", "off",
)  # fmt: skip
N_CLASSES, N_PICTURES = 5, 50


def draw_pictures(folder: Path) -> Path:
    """Noise in class folders: how long a map takes does not depend on what is to be seen."""
    random = np.random.default_rng(0)
    for i in range(N_PICTURES):
        path = folder / f"class-{i % N_CLASSES}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (256, 320, 3), dtype=np.uint8)).save(path)
    return folder


def seconds(*command: str | Path) -> float:
    """Of the whole process."""
    start = time.perf_counter()
    gradflow(*command)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/presenting"))
    out = parser.parse_args().out
    pictures = draw_pictures(out / "pictures")
    large = finished(begun_in(out / "large"), *LARGE, "--data", pictures, "--out", out / "large")
    maps = ("saliency", pictures, "--run", large.path, "-o", out / "maps")
    for trust, what in (("0", "maps"), ("4", "maps and the checks of the method")):
        times = [seconds(*maps, "--trust", trust) for _ in range(REPEATS)]
        print(f"{what}: {', '.join(f'{one:.1f}' for one in times)} s")
    long = finished(begun_in(out / "long"), *LONG, "--out", out / "long")
    page = out / "report.html"
    times = [seconds("report", long.path, "-o", page) for _ in range(REPEATS)]
    size = page.stat().st_size / 1e6
    print(f"report: {', '.join(f'{one:.1f}' for one in times)} s, {size:.1f} MB")


if __name__ == "__main__":
    main()
