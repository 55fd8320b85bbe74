"""What recording costs: paired timings of the same training steps with and without gradflow."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from gradflow.data import Augmentation, Batch, Batches, ImageStore
from gradflow.record import PARAMETER_MEASURES, Recorder
from gradflow.training.config import TrainConfig
from gradflow.training.fit import TrainingState, start_training, train_steps
from gradflow.training.rundir import build_network

BARE = "bare PyTorch loop"


@dataclass(frozen=True)
class Timing:
    """Seconds per step of one way to train, round by round, and its ratio to the bare loop."""

    name: str
    seconds: np.ndarray  # (rounds,)
    ratios: np.ndarray  # (rounds,) to the bare loop of the same round

    @property
    def ratio(self) -> float:
        return float(np.median(self.ratios))

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Quartiles of the ratio over the rounds."""
        low, high = np.quantile(self.ratios, [0.25, 0.75])
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "seconds_per_step": self.seconds.tolist(),
            "ratios": self.ratios.tolist(),
            "ratio": self.ratio,
        }


def bench(
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    n_rounds: int = 7,
    n_steps: int = 16,
    on_round: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time `n_steps` training steps in each way, in turn, `n_rounds` times: A B C D A B C D …

    All ways train the same network on the same images of the config's size. The bare loop gets
    its batches ready made. "train" is gradflow's loop with augmentation and bookkeeping; the
    others add a Recorder. Neighbouring timings are compared, so that a machine whose speed
    drifts does not decide.
    """
    if len(config.networks) != 1:
        raise ValueError(f"Expected one network to time, but got {', '.join(config.networks)}.")
    if n_rounds < 1 or n_steps < 1:
        raise ValueError(f"Expected at least one round and step, but got {n_rounds}, {n_steps}.")
    batches = _batches(config, n_steps)
    ways: dict[str, tuple[Callable[..., float], dict[str, Any]]] = {
        BARE: (_bare, {}),
        "train, not recorded": (_train, {}),
        "train, every 16 steps": (_train, {"every": 16}),
        "train, every step": (_train, {"every": 1}),
        "train, every step, parameters only": (_train, {"every": 1, "measures": PARAMETER_MEASURES}),
    }
    (arch,) = config.networks
    model = build_network(arch, 10, config, seed=0)
    state = start_training(model, config, accelerator)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-1, n_rounds):  # the round before the first one warms up
        for name, (run, recording) in ways.items():
            taken = run(state, batches, recording)
            if round_ >= 0:
                seconds[name].append(taken / n_steps)
        on_round()
    bare = np.array(seconds[BARE])
    return [
        Timing(name, np.array(taken), np.array(taken) / bare) for name, taken in seconds.items()
    ]


def _batches(config: TrainConfig, n_steps: int) -> Batches:
    """Random images: the arithmetic of a step does not depend on what they show."""
    assert config.image_size is not None
    n = config.batch_size * n_steps
    shape = (n, 3, config.image_size, config.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=_generator())
    labels = torch.randint(0, 10, (n,), generator=_generator())
    store = ImageStore(pixels, labels, tuple(f"class {i}" for i in range(10)))
    augmentation = Augmentation(flip=0.5, degrees=config.rotation)
    return Batches(store, np.arange(n), config.batch_size, shuffle=True, augmentation=augmentation)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _bare(state: TrainingState, batches: Batches, recording: dict[str, Any]) -> float:
    """What a careful user writes without gradflow, on batches that lie ready on the device."""
    ready = list(batches.epoch(0, device=state.accelerator.device))
    state.model.train()
    with _timer(state) as timer:
        for batch in ready:
            _bare_step(state, batch)
    return timer[0]


def _bare_step(state: TrainingState, batch: Batch) -> None:
    state.optimizer.zero_grad()
    logits = state.model(batch.images)
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=state.config.label_smoothing)
    torch.autograd.backward(loss)
    state.optimizer.step()


def _train(state: TrainingState, batches: Batches, recording: dict[str, Any]) -> float:
    recorder = Recorder(state.model, state.optimizer, **recording) if recording else None
    try:
        with _timer(state) as timer:
            train_steps(state, batches)
            if recorder is not None:
                recorder.flush()
    finally:
        if recorder is not None:
            recorder.close()
    return timer[0]


@contextmanager
def _timer(state: TrainingState) -> Iterator[list[float]]:
    """Seconds of the block, the device's work included."""
    taken = [0.0]
    _wait_for(state.accelerator)
    start = time.perf_counter()
    yield taken
    _wait_for(state.accelerator)
    taken[0] = time.perf_counter() - start


def _wait_for(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
