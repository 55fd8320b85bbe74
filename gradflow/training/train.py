"""One `gradflow train`: from a config to a run on disk, network by network."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from gradflow.files import DamagedFile, drop_unfinished
from gradflow.record import DEFAULT_MEASURES, Recorder
from gradflow.training.config import TrainConfig
from gradflow.training.ending import evaluate_network
from gradflow.training.examination import WEIGHT_STEPS, finish_network
from gradflow.training.fit import (
    Epoch,
    NonFiniteLoss,
    TrainingState,
    fit,
    make_accelerator,
    start_training,
)
from gradflow.training.images import Data, load_data
from gradflow.training.index import write_index
from gradflow.training.intervening import Intervening, check_interventions
from gradflow.training.rundir import NetworkDir, RunDir
from gradflow.training.summary import environment, summarise
from gradflow.training.weights import build_network, load_tensors, save_tensors

CHECKPOINT_SHARE = 0.03  # of the time may go into checkpoints (250 MB each for a ResNet-34)

# What a verdict needs beside the default measures: whether Adam divides the size away.
RECORDED = {"adamw": (*DEFAULT_MEASURES, "adam_attenuation"), "sgd": DEFAULT_MEASURES}


def train(config: TrainConfig) -> RunDir:
    """Train every network of every seed, as `gradflow train` does, and return the finished run.

    Without trackers, and nothing is printed. Raises ValueError and NonFiniteLoss.
    """
    accelerator = make_accelerator(config)
    config, data = load_data(config)
    run = begin_run(config, data, accelerator)
    for seed in config.seed_list:
        for arch in config.networks:
            for _ in train_network(run.network(arch, seed), config, data, accelerator):
                pass
            accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        summarise(run)
        write_index(run.path)
    return run


def begin_run(
    config: TrainConfig, data: Data, accelerator: Accelerator, path: Path | None = None
) -> RunDir:
    """Make the folder of a run (or use `path`), and write what it begins with.

    `config` is resolved. Raises, before there is a folder, where an intervention does not fit.
    """
    check_interventions(config, len(data.class_names))
    paths = [""]
    if accelerator.is_main_process:
        run = RunDir.create(config) if path is None else RunDir(path)
        run.save_data(data.to_json())
        run.save_environment(environment(accelerator), config.data)
        run.save_config(config)  # last: with it, it is a run
        paths = [str(run.path)]
    return RunDir(Path(broadcast_object_list(paths)[0]))


def train_network(
    network: NetworkDir,
    config: TrainConfig,
    data: Data,
    accelerator: Accelerator,
    *,
    on_step: Callable[[], None] = lambda: None,
    on_measured: Callable[[int, int], None] = lambda n_done, n: None,
    on_recorder: Callable[[Recorder], None] = lambda recorder: None,
) -> Iterator[Epoch]:
    """Train one network, resuming it where it stands; yield each epoch, whose records are on disk.

    A killed process loses what came after the last checkpoint, and comes to the same end when it
    is resumed. Ends with the evaluation of the last and the best epoch and, of a recorded network,
    with the measurements of the rival explanations, of which it tells `on_measured`. Where it
    records, `on_recorder` gets the Recorder, which holds the loss of the last step.
    """
    model = build_network(network.arch, len(data.class_names), config, seed=network.seed)
    intervening = Intervening(network, config, data)
    intervening.start(model)
    state = start_training(model, config, accelerator)
    history, saved = _go_back_to_checkpoint(network, state)
    # Before the Recorder, which then sees gradients as the optimizer receives them.
    intervening.attach(state.model, state.optimizer, lambda: state.step)
    intervening.load_state_dict(saved.get("interventions", intervening.state_dict()))
    recorder = _recorder(network, state, saved.get("recorder"))
    if recorder is not None:
        on_recorder(recorder)
    saver = _Saver(network, state, history, intervening, recorder)
    try:
        training, validation = data.training(config, network.seed), data.in_order("validation")

        def after_step() -> None:
            saver.keep_weights()
            if recorder is not None:
                recorder.loss = state.loss
            on_step()

        saver.keep_weights()
        for epoch in fit(state, training, validation, on_step=after_step):
            if recorder is not None:
                recorder.flush()
            saver.after_epoch(epoch)
            yield epoch
    except NonFiniteLoss as error:
        if recorder is None or not accelerator.is_main_process:
            raise
        found = recorder.trace.nonfinite()
        raise NonFiniteLoss(error.step, error.loss, error.lr, found[0] if found else None) from None
    finally:
        intervening.detach()
        if recorder is not None:
            recorder.close()
    if accelerator.is_main_process:
        saver.finish()
        intervening.save_checks(state)
        evaluate_network(network, state, data, recorder, intervening)
        # Last, when all else is on disk: a defect here must not cost the training.
        finish_network(network, config, data, accelerator, on_measured)


def _go_back_to_checkpoint(
    network: NetworkDir, state: TrainingState
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The history up to the checkpoint, and what the checkpoint holds; empty without one.

    What a killed process left behind the checkpoint is removed.
    """
    saved: dict[str, Any] = {}
    if network.checkpoint.exists():
        saved = load_tensors(network.checkpoint)
        try:
            state.load_dict(saved)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            advice = "Delete it, and the network begins anew."
            raise DamagedFile(
                network.checkpoint, "a checkpoint of this network", error, advice
            ) from None
    history = network.history()[: state.epoch]
    if state.accelerator.is_main_process:
        network.drop_records_from(state.step)
        drop_unfinished(network.path)
    state.accelerator.wait_for_everyone()
    return history, saved


def _recorder(
    network: NetworkDir, state: TrainingState, saved: dict[str, Any] | None
) -> Recorder | None:
    if not state.config.log_grads:
        return None
    recorder = recorder_of(state, state.step, network.path)
    if saved is not None:
        recorder.load_state_dict(saved)
    return recorder


def recorder_of(state: TrainingState, first_step: int, folder: Path | None = None) -> Recorder:
    """As the config of a training has it record."""
    return Recorder(
        state.prepared_model,
        state.optimizer,
        every=state.config.record_schedule(),
        cadence=state.config.cadence,
        measures=RECORDED[state.config.optimizer],
        folder=folder,
        scaler=state.scaler,
        first_step=first_step,
        histograms=state.config.histograms,
    )


@dataclass
class _Saver:
    """Saves checkpoints, seldom enough that they take little of the training time, and weights."""

    network: NetworkDir
    state: TrainingState
    history: list[dict[str, Any]]
    intervening: Intervening
    recorder: Recorder | None
    _best: dict[str, Tensor] | None = None  # weights of the best epoch, not yet on disk
    _saved_at: float = 0.0
    _seconds: float = 0.0  # that the last checkpoint took

    @cached_property
    def _steps_to_keep(self) -> tuple[int, ...]:
        """Of WEIGHT_STEPS, those that fit into the budget while this network alone is in
        training."""
        config = self.state.config
        if not config.log_grads:
            return ()
        n_bytes = sum(tensor.nbytes for tensor in self.state.model.state_dict().values())
        n_networks = 1 if config.rivals else len(config.networks) * len(config.seed_list)
        return WEIGHT_STEPS[: int(config.checkpoint_budget * 2**30 / n_networks // n_bytes)]

    def keep_weights(self) -> None:
        """Those of this step, where they are to be kept."""
        step = self.state.step
        if self.state.accelerator.is_main_process and step in self._steps_to_keep:
            save_tensors(self.state.model.state_dict(), self.network.weights(step))

    def after_epoch(self, epoch: Epoch) -> None:
        self.history.append(dataclasses.asdict(epoch))
        if not self.state.accelerator.is_main_process:
            return
        if epoch.is_best:
            weights = self.state.model.state_dict()
            self._best = {name: tensor.cpu().clone() for name, tensor in weights.items()}
        if time.monotonic() - self._saved_at >= self._seconds / CHECKPOINT_SHARE:
            self._save()

    def _save(self) -> None:
        """The checkpoint comes last: with it, the epochs before it count as done."""
        start = time.monotonic()
        if self._best is not None:
            save_tensors(self._best, self.network.weights("best"))
            self._best = None
        self.network.save_history(self.history)
        seen: dict[str, Any] = {"interventions": self.intervening.state_dict()}
        if self.recorder is not None:
            seen["recorder"] = self.recorder.state_dict()
        save_tensors(self.state.to_dict() | seen, self.network.checkpoint)
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - start

    def finish(self) -> None:
        """Save where training ended, and the weights of the last epoch."""
        self._save()
        save_tensors(self.state.model.state_dict(), self.network.weights("last"))
