"""`gradflow bench`: what recording costs on this machine."""

import dataclasses
from typing import Literal

from gradflow.cli.console import progress, show, show_json, stderr
from gradflow.cli.options import OK, Flag
from gradflow.training.config import TrainConfig


def bench(
    *,
    arch: str = "resnet_34",
    image_size: int = 64,
    batch_size: int = 50,
    rounds: int = 3,
    steps: int = 16,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "tf32", "bf16"] = "fp32",
    json: Flag = False,
) -> int:
    """Measure what training and recording cost on this machine, against a bare PyTorch loop.

    Parameters
    ----------
    arch
        Network: plain_18, resnet_18, plain_34 or resnet_34.
    image_size
        Side in pixels.
    batch_size
        Images per step.
    rounds
        How often each variant is timed: more on a machine whose speed drifts.
    steps
        Training steps per timing: a multiple of 16, since one variant records every 16 steps.
    device
        Where to run.
    precision
        Arithmetic.
    json
        Print the timings as one JSON object on stdout.
    """
    from gradflow.present import terminal
    from gradflow.training.bench import WAYS, recording_floor
    from gradflow.training.bench import bench as run_bench
    from gradflow.training.fit import make_accelerator

    config = TrainConfig(
        arch=arch,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        precision=precision,
    ).resolved(image_size=image_size, mirror=True)
    accelerator = make_accelerator(config)
    with progress(stderr(), "timings", total=rounds * len(WAYS)) as (bar, task):
        timings = run_bench(
            config,
            accelerator,
            n_rounds=rounds,
            n_steps=steps,
            on_timing=lambda: bar.advance(task),
        )
    floor = recording_floor(config, accelerator)
    if json:
        timed = [timing.to_json() for timing in timings]
        show_json({"timings": timed, "floor": dataclasses.asdict(floor)})
    else:
        title = (
            f"{arch}, {image_size} px, batch {batch_size}, {precision}, {accelerator.device}, "
            f"{rounds} rounds of {steps} steps"
        )
        show(terminal.bench_view(timings, title))
        show(terminal.floor_line(floor, timings[0]))
    return OK
