"""The pictures of docs/gallery.md: what gradflow's commands draw, of real trainings.

Gradients, curves and classes are those of the original study's photographs at 64 px: its recipe for
8 of its 50 epochs, both networks, four seeds. The photographs belong to their authors and are not
shown: where a map lies over a picture, that is one of the bundled digits. The figures of a study
are those of experiments/studies/digits.yaml.

    python experiments/gallery.py PHOTOGRAPHS       # about 30 minutes on 2 cores

What is finished in --out is not trained again; a stopped run is resumed. The pictures go to
docs/images/gallery/. The findings that stand above them in a report are printed, for the captions.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from trained import begun_in, finished, gradflow

from gradflow.present.report.charts import charts
from gradflow.present.report.content import collect
from gradflow.training.rundir import RunDir

PICTURES = Path(__file__).parents[1] / "docs" / "images" / "gallery"
DIGIT = 3  # of load_digits(): the first three
COMMON = ("--log-grads", "--no-rivals", "--checkpoint-budget", "0", "--wandb", "off")
RECIPES = {  # each in a folder of its own
    "seeds-0-1": ("--image-size", "64", "--epochs", "8", "--patience", "0", "--seeds", "0,1"),
    "seeds-2-3": ("--image-size", "64", "--epochs", "8", "--patience", "0", "--seeds", "2,3"),
    "digits": ("--epochs", "5", "--patience", "0"),
}
OF_REPORT = (
    "gradient-profiles", "gradient-profiles-dark", "output-zero-fraction", "relative-update",
    "loss-by-epoch", "confusion-plain_34", "class-differences", "calibration",
)  # fmt: skip


def train(name: str, data: Path, out: Path) -> RunDir:
    """The finished run of one recipe."""
    options = ["--arch", "both", "--out", str(out / name), *COMMON, *RECIPES[name]]
    options += [] if name == "digits" else ["--data", str(data)]
    return finished(begun_in(out / name), *options)


def draw(runs: list[RunDir], digits: RunDir, out: Path) -> dict[str, Path]:
    """Every picture that the commands make of the runs, by its name in the gallery."""
    gradflow("report", *(run.path for run in runs), "--static", "-o", out / "report.html")
    for run in (runs[0], digits):
        gradflow("saliency", "--split", "test", "--run", run.path)
    image = out / "three.png"
    Image.fromarray((load_digits().images[DIGIT] * 15.9).astype("uint8")).save(image)
    gradflow("saliency", image, "--run", digits.path, "--classes", "4", "-o", out / "saliency.png")
    return {
        "loss": runs[0].figures / "loss.png",
        "depth-profile": runs[0].figures / "depth_profile.png",
        "heat-map": runs[0].figures / "heatmap-plain_34-s0.png",
        **{name: out / "report-figures" / f"{name}.png" for name in OF_REPORT},
        "saliency": out / "saliency.png",
        "saliency-by-class": digits.figures / "saliency-gradcam-plain_34-s0.png",
        "saliency-mean": runs[0].figures / "saliency-gradcam-mean.png",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train.csv and the photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    arguments = parser.parse_args()
    runs = {name: train(name, arguments.data, arguments.out) for name in RECIPES}
    digits = runs.pop("digits")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, path in draw(list(runs.values()), digits, arguments.out).items():
        shutil.copyfile(path, PICTURES / f"{name}.png")
    for chart in charts(collect([run.path for run in runs.values()])):
        print(f"{chart.key}: {chart.title}")


if __name__ == "__main__":
    main()
