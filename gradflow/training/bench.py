"""What recording costs: paired timings of the same training steps with and without gradflow."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from gradflow.data import Augmentation, Batch, Batches, ImageStore
from gradflow.record import PARAMETER_MEASURES, Recorder
from gradflow.record.schedule import DEFAULT_CADENCE, N_FULL_AT_FIRST
from gradflow.training.config import TrainConfig
from gradflow.training.fit import TrainingState, start_training, train_steps
from gradflow.training.weights import build_network

MAX_TIMED = 10_000  # rounds, and steps of one
BARE = "bare PyTorch loop"


@dataclass(frozen=True)
class Timing:
    """Seconds per step of one way to train, round by round, and its ratio to the bare loop."""

    name: str
    seconds: np.ndarray  # (rounds,)
    ratios: np.ndarray  # (rounds,) to the bare loop timed right before it

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
    n_rounds: int = 3,
    n_steps: int = 16,
    on_timing: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time `n_steps` training steps in each way, next to as many of the bare loop: A B A C A D …

    All ways train the same network on the same images of the config's size. The bare loop gets
    its batches ready made; "recorded …" adds a Recorder to it and nothing else. "gradflow train"
    is gradflow's loop with augmentation and bookkeeping. Neighbouring timings are compared, so that
    a machine whose speed drifts does not decide.
    """
    if len(config.networks) != 1:
        raise ValueError(f"Expected one network to time, but got {', '.join(config.networks)}.")
    if not (1 <= n_rounds <= MAX_TIMED and 1 <= n_steps <= MAX_TIMED):
        raise ValueError(
            f"Expected `rounds` and `steps` from 1 to {MAX_TIMED}, but got {n_rounds}, {n_steps}."
        )
    batches = _batches(config, n_steps)
    (arch,) = config.networks
    state = start_training(build_network(arch, 10, config, seed=0), config, accelerator)
    _bare(state, batches, {})  # warms up
    # By way and round: seconds per step of the bare loop, and of the way right after it.
    pairs = np.zeros((len(WAYS), n_rounds, 2))
    for round_ in range(n_rounds):
        for way, (run, recording) in enumerate(WAYS.values()):
            pairs[way, round_, 0] = _bare(state, batches, {}) / n_steps
            pairs[way, round_, 1] = run(state, batches, recording) / n_steps
            on_timing()
    bare, taken = pairs[..., 0], pairs[..., 1]
    timings = [Timing(BARE, np.median(bare, axis=0), np.ones(n_rounds))]
    timings += [
        Timing(name, seconds, seconds / of_bare)
        for name, seconds, of_bare in zip(WAYS, taken, bare, strict=True)
    ]
    return timings


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

    def steps() -> None:
        for batch in ready:
            _bare_step(state, batch)

    return _timed(state, recording, steps)


def _bare_step(state: TrainingState, batch: Batch) -> None:
    state.optimizer.zero_grad()
    logits = state.model(batch.images)
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=state.config.label_smoothing)
    torch.autograd.backward(loss)
    state.optimizer.step()


def _train(state: TrainingState, batches: Batches, recording: dict[str, Any]) -> float:
    return _timed(state, recording, lambda: train_steps(state, batches))


def _timed(state: TrainingState, recording: dict[str, Any], steps: Callable[[], object]) -> float:
    """Seconds that the steps take, with the device's work and bringing records to the host."""
    made = Recorder(state.prepared_model, state.optimizer, **recording) if recording else None
    with made or nullcontext() as recorder:
        _wait_for(state.accelerator)
        start = time.perf_counter()
        steps()
        if recorder is not None:
            recorder.flush()
        _wait_for(state.accelerator)
        return time.perf_counter() - start


# After the first steps, which are all full.
_SETTLED = {"first_step": N_FULL_AT_FIRST}

# What is timed next to the bare loop: how to train, and the options of the Recorder, if any. The
# one step in 16 is a full one.
WAYS: dict[str, tuple[Callable[..., float], dict[str, Any]]] = {
    "bare again (the noise)": (_bare, {}),
    "recorded at every step": (_bare, _SETTLED),
    "every step, all measures at each": (_bare, {"cadence": 1}),
    "every step, with histograms": (_bare, {"histograms": True, **_SETTLED}),
    "recorded at every 16th step": (_bare, {"every": 16}),
    "every step, parameters only": (_bare, {"measures": PARAMETER_MEASURES, **_SETTLED}),
    "every step, gradient norms only": (_bare, {"measures": ["grad_norm"]}),
    "gradflow train, not recorded": (_train, {}),
    "gradflow train, recorded at every step": (_train, _SETTLED),
}


@dataclass(frozen=True)
class Floor:
    """The least that recording every step can take: its bytes over the speed of this memory."""

    n_bytes: int  # in the mean over full steps and others
    bytes_per_second: float

    @property
    def seconds(self) -> float:
        return self.n_bytes / self.bytes_per_second


def recording_floor(config: TrainConfig, accelerator: Accelerator) -> Floor:
    """Bytes that must be read: at every step the gradients of outputs and parameters once, and at
    one in 8 also outputs, weights, their copy before the step, and weight and copy after it. A ReLU
    straight behind a layer needs no read; it is counted, so recording can be a little faster.
    """
    (arch,) = config.networks
    state = start_training(build_network(arch, 10, config, seed=0), config, accelerator)
    state.model.train()
    with Recorder(state.prepared_model, state.optimizer) as recorder:
        train_steps(state, _batches(config, 1))
    trace = recorder.trace
    is_parameter = ~np.isnan(trace.values["weight_norm"][0])
    n_outputs, n_weights = trace.sizes[~is_parameter].sum(), trace.sizes[is_parameter].sum()
    itemsize = 2 if config.precision == "bf16" else 4
    at_every_step = n_outputs * itemsize + n_weights * 4
    at_full_steps = n_outputs * itemsize + 4 * n_weights * 4
    n_bytes = int(at_every_step + at_full_steps / DEFAULT_CADENCE)
    return Floor(n_bytes, _read_speed(accelerator))


def _read_speed(accelerator: Accelerator, n: int = 2**26, n_times: int = 7) -> float:
    """Bytes per second at which PyTorch reads two long vectors, the best of some times."""
    x, y = torch.ones(2, n, device=accelerator.device)
    taken = []
    for _ in range(n_times):
        _wait_for(accelerator)
        start = time.perf_counter()
        torch.dot(x, y)
        _wait_for(accelerator)
        taken.append(time.perf_counter() - start)
    return float(2 * x.nbytes / min(taken))


def _wait_for(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
