"""The picture of the answer: training loss by epoch under the recipe and under a cosine.

    python experiments/loss_curves.py

From the trainings of the photographs' study that are kept (results/studies/photographs-64px/cells).
Lines are means over the seeds in which all four trainings have ended, bands their range.
Writes docs/images/recipe-and-cosine.png.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from gradflow.analysis.statistics import mean_and_range
from gradflow.present import plots
from gradflow.present.plots.style import GUIDE, new_figure, styles

HERE = Path(__file__).parent
CELLS = HERE / "results" / "studies" / "photographs-64px" / "cells"
PICTURE = HERE.parent / "docs" / "images" / "recipe-and-cosine.png"
ARMS = {"baseline": "the original's recipe", "cosine": "a cosine, all else the same"}
PLACES = {"plain_34": "accused", "resnet_34": "reference"}


def main() -> None:
    seeds = complete_seeds()
    figure = new_figure(7.5, 4.0)
    axes = figure.subplots(2, 2, sharex=True, sharey="row", gridspec_kw={"height_ratios": [4, 1]})
    for column, (arm, title) in enumerate(ARMS.items()):
        losses = {name: curves(arm, place, seeds, "train_loss") for name, place in PLACES.items()}
        draw_losses(axes[0, column], losses)
        axes[0, column].set_title(title, fontsize=10)
        draw_rate(axes[1, column], curves(arm, "accused", seeds[:1], "lr")[0])
    axes[0, 0].set_ylabel("training loss (nats)")
    axes[1, 0].set_ylabel("learning\nrate")
    axes[0, 1].legend(frameon=False)
    plots.save(figure, PICTURE)
    print(f"{PICTURE}: seeds {', '.join(seeds)}")


def complete_seeds() -> list[str]:
    """In which the trainings of both networks have ended in both arms."""
    ended = [
        {path.parents[1].name.rpartition("-s")[2]
         for path in CELLS.glob(f"{arm}/{place}-s*/*/evaluation.json")}
        for arm in ARMS
        for place in PLACES.values()
    ]  # fmt: skip
    return sorted(set.intersection(*ended))


def curves(arm: str, place: str, seeds: list[str], what: str) -> np.ndarray:
    """(seeds, epochs)."""
    of_seeds = []
    for seed in seeds:
        (path,) = CELLS.glob(f"{arm}/{place}-s{seed}/*/history.json")
        of_seeds.append([epoch[what] for epoch in json.loads(path.read_text(encoding="utf-8"))])
    return np.array(of_seeds)


def draw_losses(ax: Axes, losses: dict[str, np.ndarray]) -> None:
    for (name, values), style in zip(losses.items(), styles(losses), strict=True):
        mean, low, high = mean_and_range(values)
        epochs = np.arange(1, len(mean) + 1)
        ax.plot(epochs, mean, label=name, markersize=4, markevery=5, **style)
        ax.fill_between(epochs, low, high, color=style["color"], alpha=0.15, lw=0)
    ax.grid(axis="y", alpha=0.3)


def draw_rate(ax: Axes, lr: np.ndarray) -> None:
    ax.step(np.arange(1, len(lr) + 1), lr, where="mid", color=GUIDE, lw=1.2)
    ax.set_xlabel("epoch")


if __name__ == "__main__":
    main()
