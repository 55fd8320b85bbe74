"""Claim under test: Plain-34 loses to ResNet-34 because its gradients vanish towards the input.

Runs the original study's recipe on its photographs, once with its own random split and without
early stopping, once with the leak-free split, and collects accuracies beside the published ones
and the ratio first / last convolution of the gradient norms. One seed describes and proves
nothing: see the intervals.

    python experiments/original_study.py PHOTOGRAPHS --image-size 64
    python experiments/original_study.py PHOTOGRAPHS --image-size 224 --device cuda

What is finished in --out is not run again; a stopped run is resumed. Results go to
experiments/results/. Figures and findings: experiments/README.md.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from trained import begun_in, environment, finished

from gradflow.files import write_json
from gradflow.training.rundir import RunDir

RESULTS = Path(__file__).parent / "results"

# The original's early stopping never fired, and its split ignored copies.
SPLITS = {
    "random": ["--split", "random", "--patience", "0"],
    "grouped": ["--split", "grouped"],
}


def train(split: str, arguments: argparse.Namespace) -> RunDir:
    """The finished run of one split."""
    out = arguments.out / split
    options = ["--data", str(arguments.data), "--image-size", str(arguments.image_size)]
    options += ["--log-grads", "--device", arguments.device, "--out", str(out), *SPLITS[split]]
    return finished(begun_in(out), *options)


def result(run: RunDir) -> dict[str, Any]:
    """The summary of a run with what is needed to repeat it, without paths of this machine."""
    summary = {key: value for key, value in run.summary().items() if key not in ("run", "data")}
    config = run.config()
    settings = {"split": config.split, "patience": config.patience, "epochs": config.epochs}
    return {
        "environment": environment(run),
        "settings": settings | {"image_size": config.image_size, "seeds": config.seeds},
        **summary,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row per split, network and epoch."""
    lines = [
        "| split | network | epoch | train | test (95 % interval) | published train / test "
        "| first / last, step 0 | over training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for split, content in results.items():
        for network in content["networks"]:
            ratio = network["grad_norm_first_to_last"]
            published = network["published"] or {}
            for which in ("best", "last"):
                part = network[which]
                low, high = part["test"]["accuracy_interval"]
                # The original's random split validates on its test images: the best epoch is
                # chosen by them, and its test accuracy is too high.
                chosen = (split, which) == ("random", "best")
                note = ", chosen on the test set" if chosen else ""
                lines.append(
                    f"| {split} | {network['arch']} | {which} ({part['epoch'] + 1}){note} "
                    f"| {part['train']['accuracy']:.3f} "
                    f"| {part['test']['accuracy']:.3f} ({low:.3f} to {high:.3f}) "
                    f"| {published.get('train_accuracy', '')} / "
                    f"{published.get('test_accuracy', '')} "
                    f"| {ratio['first_recorded_step']:.3g} | {ratio['over_training']:.3g} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train.csv and the photographs")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/original-study"))
    arguments = parser.parse_args()
    runs = {split: train(split, arguments) for split in SPLITS}
    results = {split: result(run) for split, run in runs.items()}
    RESULTS.mkdir(exist_ok=True)
    name = f"original-study-{arguments.image_size}px"
    write_json(RESULTS / f"{name}.json", results)
    shown = RESULTS / f"{name}-grouped-depth_profile.png"
    shutil.copyfile(runs["grouped"].figures / "depth_profile.png", shown)
    print(table(results))


if __name__ == "__main__":
    main()
