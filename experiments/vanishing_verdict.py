"""Claim under test: Plain-34 loses to ResNet-34 because its gradients vanish towards the input.

The original study's recipe on its photographs at 64 px, without early stopping (the original's
never fired), on the leak-free split, over five paired seeds. The thresholds of the verdict
(gradflow/analysis/thresholds.py) were committed before these runs. Judged are the study's three
claims: 1. the gap between training and test accuracy of Plain-34 shows overfitting; 2. its
gradients vanish, which is why it does worse; 3. skip connections keep the gradient flowing.

The runs end after 20 of the recipe's 50 epochs, for want of computing time: its learning rate falls
ten-fold every 5 epochs, so that the last 30 hold 0.01 % of the sum of all learning rates. What only
they can show, weights that no longer change a bit (half of H5), these runs do not see.

    python experiments/vanishing_verdict.py PHOTOGRAPHS
    python experiments/vanishing_verdict.py PHOTOGRAPHS --part 0    # each part in a process of
    python experiments/vanishing_verdict.py PHOTOGRAPHS --part 1    # its own shares the cores

What is finished in --out is not run again; a stopped run is resumed. Results go to
experiments/results/. Findings: docs/worked-example.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from trained import environment, finished, gradflow

from gradflow.analysis.compare import compare
from gradflow.analysis.statistics import t_interval
from gradflow.analysis.verdict import Verdict, judge_case
from gradflow.controls.gate import load_gate
from gradflow.present import plots
from gradflow.present.figures import verdict_figure
from gradflow.training.diagnosis import open_case
from gradflow.training.rundir import NetworkDir, RunDir

RESULTS = Path(__file__).parent / "results"
NAME = "vanishing-verdict-64px-20-epochs"

RECIPE = (
    "--image-size", "64", "--epochs", "20", "--patience", "0", "--log-grads",
    "--checkpoint-budget", "12", "--wandb", "off",
)  # fmt: skip
# Independent of each other, so that two processes of one thread can share two cores.
PARTS = (
    ("--seeds", "0,1,"),
    ("--seeds", "2,3,"),
    ("--seeds", "4,", "--arch", "plain_34"),
    ("--seeds", "4,", "--arch", "resnet_34"),
)


def train(part: int, data: Path, out: Path) -> RunDir:
    """The finished run of one part, with its rivals measured."""
    options = ["--data", str(data), "--out", str(out), *PARTS[part], *RECIPE]
    run = finished(_started(part, out), *options)
    if any(network.examination() is None for network in run.networks()):
        gradflow("diagnose", run.path, "--measure", "--json")
    return run


def _started(part: int, out: Path) -> RunDir | None:
    """The run that has the seeds and networks of this part."""
    options = PARTS[part]
    arch = options[3] if len(options) > 2 else "both"
    for path in sorted(out.glob("*/config.yaml")):
        config = RunDir.open(path.parent).config()
        if (config.seeds, config.arch) == (options[1], arch):
            return RunDir.open(path.parent)
    return None


def accuracies(networks: list[NetworkDir]) -> dict[str, Any]:
    """Accuracy of each network at the last epoch, per seed, on training and test images."""
    table: dict[str, Any] = {}
    for network in networks:
        last = network.evaluation()["last"]
        row = {part: last[part]["accuracy"] for part in ("train", "validation", "test")}
        row |= {"test_balanced": last["test"]["balanced_accuracy"], "n_test": last["test"]["n"]}
        table.setdefault(network.arch, {})[network.seed] = row
    return table


def overfitting_claim(table: dict[str, Any]) -> dict[str, Any]:
    """Claim 1: training less test accuracy, of each network and of the difference, over seeds."""
    gaps = {
        arch: {seed: row["train"] - row["test"] for seed, row in sorted(rows.items())}
        for arch, rows in table.items()
    }
    plain, residual = gaps["plain_34"], gaps["resnet_34"]
    numbers = {
        "plain_34": list(plain.values()),
        "resnet_34": list(residual.values()),
        "plain_34 less resnet_34": [plain[seed] - residual[seed] for seed in plain],
    }
    return {
        name: {"values": values, "mean": found.mean, "interval": [found.low, found.high]}
        for name, values in numbers.items()
        for found in [t_interval(values)]
    }


def results(runs: list[RunDir], verdict: Verdict) -> dict[str, Any]:
    """What is kept: everything that a reader needs to check the answer, without paths."""
    table = accuracies([network for run in runs for network in run.networks()])
    return {
        "environment": environment(runs[0]),
        "recipe": " ".join(RECIPE),
        "split": runs[0].data()["split"]["counts"],
        "accuracies": table,
        "claim 1: training less test accuracy": overfitting_claim(table),
        "verdict": verdict.to_json(),
        "comparison": [one.to_json() for one in compare(verdict.case)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train.csv and the photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/vanishing-verdict"))
    parser.add_argument("--part", type=int, choices=range(len(PARTS)), help="train this part only")
    arguments = parser.parse_args()
    if arguments.part is not None:
        train(arguments.part, arguments.data, arguments.out)
        return
    runs = [train(part, arguments.data, arguments.out) for part in range(len(PARTS))]
    verdict = judge_case(open_case([run.path for run in runs]), load_gate())
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(results(runs, verdict), indent=1, ensure_ascii=False, allow_nan=False)
    (RESULTS / f"{NAME}.json").write_text(text + "\n", encoding="utf-8")
    plots.save(verdict_figure(verdict), RESULTS / f"{NAME}.png")
    print("\n".join(verdict.sentences))


if __name__ == "__main__":
    main()
