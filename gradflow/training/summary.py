"""What is left of a run when it ends: the summary, and the facts needed to repeat it."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from gradflow.analysis import first_to_last, geometric_mean
from gradflow.record import Trace
from gradflow.training.evaluate import mcnemar
from gradflow.training.rundir import NetworkDir, RunDir
from gradflow.typed import to_json
from gradflow.version import VERSION


def summarise(run: RunDir) -> dict[str, Any]:
    """The essential of a finished run, as plain JSON types; also saved as summary.json."""
    config = run.config()
    data = run.data()
    networks = [_network_summary(network) for network in run.networks()]
    summary = {
        "run": str(run.path),
        "data": config.data,
        "split": {
            key: data["split"][key] for key in ("kind", "seed", "validation_is_test", "counts")
        },
        "image_size": config.image_size,
        "networks": networks,
        "comparisons": [
            comparison
            for seed in config.seed_list
            for comparison in _comparisons(run, config.networks, seed)
        ],
    }
    run.save_summary(summary)
    return summary


def _network_summary(network: NetworkDir) -> dict[str, Any]:
    evaluation = network.evaluation()
    history = network.history()
    keys = ("accuracy", "accuracy_interval", "loss", "n", "n_correct", "calibration_error",
            "calibration_error_if_perfect")  # fmt: skip
    summary: dict[str, Any] = {
        "name": network.name,
        "arch": network.arch,
        "seed": network.seed,
        "epochs": len(history),
        "seconds_training": network.training_seconds(),
        "published": evaluation["published"],
        "recording": evaluation.get("recording"),
        "interventions": network.interventions(),
    }
    for which in ("last", "best"):
        summary[which] = {"epoch": evaluation[which]["epoch"]} | {
            part: {key: evaluation[which][part].get(key) for key in keys}
            for part in ("train", "validation", "test")
        }
    if network.has_trace():
        summary["grad_norm_first_to_last"] = _gradient_ratio(network.trace())
    return summary


def _gradient_ratio(trace: Trace) -> dict[str, float | None]:
    """First over last convolution: at the first recorded step, and as a mean over all of them."""
    ratio = first_to_last(trace)
    usable = ratio[np.isfinite(ratio)]
    found = {
        "first_recorded_step": ratio[0],
        "over_training": geometric_mean(ratio[:, np.newaxis])[0],
        "smallest": usable.min(initial=np.inf),
        "largest": usable.max(initial=-np.inf),
    }
    return dict(to_json(found))


def _comparisons(run: RunDir, archs: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """McNemar's test of the first network against each other one, on the same test images."""
    evaluations = [run.network(arch, seed).evaluation() for arch in archs]
    right = {
        (arch, which): np.asarray(evaluation[which]["test"]["is_right"], dtype=bool)
        for arch, evaluation in zip(archs, evaluations, strict=True)
        for which in ("last", "best")
    }
    return [
        {"seed": seed, "epoch": which, "first": archs[0], "second": other}
        | mcnemar(right[archs[0], which], right[other, which])
        for other in archs[1:]
        for which in ("last", "best")
    ]


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What one needs to know to repeat the run."""
    packages = ("torch", "torchvision", "numpy", "accelerate", "captum", "scikit-learn", "wandb")
    on_gpu = accelerator.device.type == "cuda"
    return {
        "gradflow": VERSION,
        "commit": _commit(),
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {os.cpu_count()} cores",
        "torch_threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }


def _commit() -> str | None:
    """The commit of a source checkout; None in an installed package, whatever it lies in."""
    checkout = Path(__file__).parents[2]
    if not (checkout / "pyproject.toml").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
