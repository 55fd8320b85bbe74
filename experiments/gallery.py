"""The pictures of docs/gallery.md: what gradflow's commands draw, of real trainings.

Gradients, curves and classes are those of the photographs at 64 px: the original study's recipe in
8 of its 50 epochs, both networks, two seeds. The photographs belong to their authors and are not
shown: where a map lies over a picture, that is one of the bundled digits.

    python experiments/gallery.py PHOTOGRAPHS       # about 20 minutes on 2 cores

What is finished in --out is not trained again; a stopped run is resumed. The pictures go to
docs/images/gallery/. The findings that stand above them in a report are printed, for the captions.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from trained import begun_in, finished, gradflow

from gradflow.present.report.content import collect
from gradflow.present.report.story import charts
from gradflow.training.rundir import RunDir

PICTURES = Path(__file__).parents[1] / "docs" / "images" / "gallery"
DIGIT = 3  # of load_digits(): the first three
COMMON = (
    "--arch", "both", "--log-grads", "--patience", "0", "--no-rivals", "--checkpoint-budget", "0",
    "--wandb", "off",
)  # fmt: skip
PHOTOGRAPHS = ("--image-size", "64", "--epochs", "8", "--seeds", "2")
DIGITS = ("--width", "1", "--epochs", "5", "--lr", "6e-4", "--schedule", "step")
OF_REPORT = (
    "gradient-profiles", "gradient-profiles-dark", "output-dead-window", "output-zero-fraction",
    "output-rms", "relative-update", "distance", "angle-from-start", "loss-by-epoch",
    "accuracy-by-epoch", "confusion-plain_34", "class-differences", "calibration",
)  # fmt: skip


def train(out: Path, *options: str | Path) -> RunDir:
    """The finished run in the folder `out`."""
    return finished(begun_in(out), *COMMON, "--out", out, *options)


def draw(run: RunDir, digits: RunDir, out: Path) -> dict[str, Path]:
    """Every picture that the commands make of them, by its name in the gallery."""
    gradflow("report", run.path, "--static", "-o", out / "report.html")
    for one in (run, digits):
        gradflow("saliency", "--split", "test", "--run", one.path)
    image = out / "three.png"
    Image.fromarray((load_digits().images[DIGIT] * 15.9).astype("uint8")).save(image)
    gradflow("saliency", image, "--run", digits.path, "--classes", "4", "-o", out / "saliency.png")
    return {
        "loss": run.figures / "loss.png",
        "depth-profile": run.figures / "depth_profile.png",
        "heat-map": run.figures / "heatmap-plain_34-s0.png",
        **{name: out / "figures" / f"{name}.png" for name in OF_REPORT},
        "saliency": out / "saliency.png",
        "saliency-by-class": digits.figures / "saliency-gradcam-plain_34-s0.png",
        "saliency-mean": run.figures / "saliency-gradcam-mean.png",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train.csv and the photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    arguments = parser.parse_args()
    out = arguments.out
    run = train(out / "photographs", "--data", arguments.data, *PHOTOGRAPHS)
    digits = train(out / "digits", *DIGITS)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, path in draw(run, digits, out).items():
        shutil.copyfile(path, PICTURES / f"{name}.png")
    for chart in charts(collect([run.path])):
        print(f"{chart.key}: {chart.title}")


if __name__ == "__main__":
    main()
