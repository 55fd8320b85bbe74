"""What a logged step costs: W&B offline and TensorBoard, with every key of a ResNet-34.

    python experiments/tracking_cost.py

The claim: less than 2 ms a step. Measured is the time that `log` takes in the training process;
what wandb's own process does beside it is not counted.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradflow.nets import resnet_34
from gradflow.present.tracking.rows import layer_columns
from gradflow.present.tracking.sink import Sink
from gradflow.present.tracking.tensorboard_sink import TensorBoardSink
from gradflow.present.tracking.wandb_sink import WandbSink
from gradflow.record import Trace


def row() -> dict[str, float]:
    """All that is logged at one recorded step of a ResNet-34."""
    weights = [name for name, tensor in resnet_34(10).named_parameters() if tensor.ndim > 1]
    layers = [name.removesuffix(".weight") for name in weights]
    sites = (*layers, *weights)
    kinds = ["linear" if layer == "fc" else "conv" for layer in layers]
    values = np.random.default_rng(0).lognormal(size=(1, len(sites)))
    trace = Trace(
        np.zeros(1, np.int64),
        sites,
        (*kinds, *(f"{kind}.weight" for kind in kinds)),
        np.ones(len(sites), np.int64),
        {name: values for name in ("grad_norm", "weight_norm", "output_grad_norm")},
    )
    return {"train/loss": 1.0} | {k: float(v[0]) for k, v in layer_columns(trace).items()}


def milliseconds(sink: Sink, values: Mapping[str, float], n_steps: int) -> np.ndarray:
    """(n_steps,): of each `log`."""
    taken = np.empty(n_steps)
    for step in range(n_steps):
        start = time.perf_counter()
        sink.log(values, step)
        taken[step] = time.perf_counter() - start
    sink.finish({})
    return taken * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    n_steps = parser.parse_args().steps
    values = row()
    print(f"{len(values) + 1} values a step, {n_steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        about = {"mode": "offline", "project": "cost", "group": "cost", "job_type": "cost"}
        sinks = {
            "W&B offline": WandbSink(Path(folder), **about, name="cost", config={}),
            "TensorBoard": TensorBoardSink(Path(folder, "tensorboard")),
        }
        for name, sink in sinks.items():
            taken = milliseconds(sink, values, n_steps)
            print(
                f"{name}: mean {taken.mean():.2f} ms, median {np.median(taken):.2f}, "
                f"95 % below {np.quantile(taken, 0.95):.2f}"
            )


if __name__ == "__main__":
    main()
