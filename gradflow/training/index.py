"""index.md: what a folder of results holds, for a person who opens it."""

from collections.abc import Iterator
from pathlib import Path

from gradflow.files import write_text

INDEX = "index.md"
TITLE = "# What is in this folder"  # by which an index is known as ours
OF_RESULTS = ("config.yaml", "study.yaml", "records")  # a folder without any of these gets none

# What people open comes first. A pattern may stand for several files.
CONTENTS = {
    "report.html": "the report: one page with all of it, to open, to mail or to print",
    "report.md": "the same as text",
    "report.json": "the same as numbers",
    "figures": "every figure: those of the training, of the verdict, and of the report",
    "saliency": "what the networks look at: scores and mean maps of each method",
    "summary.json": "accuracies, comparisons, and the gradient from first to last layer",
    "results.json": "the study: gap, shares and notes",
    "times.json": "what the study took",
    "study.yaml": "the study as it was asked for",
    "cells": "one run for each arm, network and seed",
    "config.yaml": "the whole configuration; `gradflow train --config` reads it",
    "environment.json": "versions, device, commit and command",
    "data.json": "classes, audit and split",
    "wandb": "Weights & Biases: `wandb sync` sends it",
    "tensorboard": "`tensorboard --logdir` shows it",
    "records": "gradients, activations and updates by step and layer (Parquet)",
    "*/history.json": "loss, accuracy and learning rate by epoch",
    "*/evaluation.json": "accuracies, confusion and predictions, last and best epoch",
    "*/examination.json": "what the rival explanations are judged by",
    "*/interventions.json": "what was changed on purpose, and its checks",
    "*/records": "gradients, activations and updates by step and layer (Parquet)",
    "*/best.pt": "weights of the best epoch",
    "*/last.pt": "weights of the last epoch",
    "*/step-*.pt": "weights after so many steps",
}


def write_index(folder: Path) -> None:
    """Say in index.md what is in a folder of results now; nothing where another file has its name.

    To be called by whatever has put something there.
    """
    path = folder / INDEX
    if _may_replace(path) and any((folder / name).exists() for name in OF_RESULTS):
        write_text(path, "\n".join([TITLE, "", "| | |", "|---|---|", *_rows(folder)]) + "\n")


def _may_replace(path: Path) -> bool:
    if path.is_symlink() or not path.exists():  # a link is replaced, not followed
        return True
    if not path.is_file():  # a pipe may never end
        return False
    with path.open("rb") as file:
        return file.read(len(TITLE)) == TITLE.encode()


def _rows(folder: Path) -> Iterator[str]:
    for pattern, meaning in CONTENTS.items():
        found = sorted(folder.glob(pattern))
        if not found:
            continue
        if "*" not in pattern:
            name = pattern + "/" * found[0].is_dir()
            yield f"| [{name}]({name}) | {meaning} |"
        else:
            networks = ", ".join(dict.fromkeys(f"{one.parent.name}/" for one in found))
            yield f"| {pattern.partition('/')[2]} in {networks} | {meaning} |"
