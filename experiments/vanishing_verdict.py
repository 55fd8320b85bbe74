"""Claim under test: Plain-34 loses to ResNet-34 because its gradients vanish towards the input.

The original study's recipe on its photographs at 64 px, without early stopping (the original's
never fired), on the leak-free split, over five paired seeds. The thresholds of the verdict
(gradflow/analysis/thresholds.py) were committed before these runs.

    python experiments/vanishing_verdict.py PHOTOGRAPHS

A stopped run is resumed. Results go to experiments/results/.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from gradflow.training.rundir import RunDir

RECIPE = (
    "--image-size", "64", "--seeds", "5", "--patience", "0", "--log-grads",
    "--checkpoint-budget", "12", "--wandb", "off",
)  # fmt: skip


def train(data: Path, out: Path) -> RunDir:
    """The finished run, trained or resumed if need be."""
    stopped = sorted(out.glob("*/config.yaml"))
    if stopped and RunDir.open(stopped[-1].parent).is_finished:
        return RunDir.open(stopped[-1].parent)
    start = ["--data", str(data), "--out", str(out), *RECIPE]
    options = ["--resume", str(stopped[-1].parent)] if stopped else start
    command = [sys.executable, "-m", "gradflow", "train", "--json", *options]
    summary = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return RunDir.open(Path(summary["run"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train.csv and the photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/vanishing-verdict"))
    arguments = parser.parse_args()
    print(train(arguments.data, arguments.out).path)


if __name__ == "__main__":
    main()
