"""One `gradflow train`: from a config to a run on disk, network by network."""

import dataclasses
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gradflow.data import (
    NEAR_TWIN_BITS,
    Audit,
    Augmentation,
    Batches,
    ImageStore,
    Split,
    keys_sha256,
    load_images,
    open_source,
)
from gradflow.data import split as split_images
from gradflow.examine.batchnorm import recalibrated
from gradflow.files import DamagedFile, drop_unfinished, write_text
from gradflow.interventions import Intervention, changed_labels
from gradflow.record import DEFAULT_MEASURES, MaxOverhead, Recorder, Trace
from gradflow.training.config import TrainConfig
from gradflow.training.evaluate import evaluate, predict, report_text
from gradflow.training.examination import examine_network
from gradflow.training.fit import Epoch, NonFiniteLoss, TrainingState, fit, start_training
from gradflow.training.intervening import Intervening
from gradflow.training.original import published, published_text
from gradflow.training.remaining import FORWARD, Work
from gradflow.training.rundir import (
    NetworkDir,
    RunDir,
    Weights,
    build_network,
    load_tensors,
    load_weights,
    save_tensors,
)

EVALUATION_BATCH = 200  # images; without gradients this fits where a training batch does
CHECKPOINT_SHARE = 0.03  # of the time may go into checkpoints (250 MB each for a ResNet-34)

# What a verdict needs beside the default measures: whether Adam divides the size away.
RECORDED = {"adamw": (*DEFAULT_MEASURES, "adam_attenuation"), "sgd": DEFAULT_MEASURES}

# After which optimizer steps weights are kept for the measurements of the rival explanations, in
# the order of their worth: the start, the early steps, the end of the original's first stage of the
# learning rate.
WEIGHT_STEPS = (0, 10, 90)


@dataclass(frozen=True)
class Data:
    """The images of a run, and what each is for."""

    audit: Audit
    store: ImageStore
    split: Split
    true_labels: Tensor  # those of the source; the store has what an intervention made of them

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.store.class_names

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": list(self.class_names),
            "pixels_sha256": hashlib.sha256(self.store.pixels.numpy().data).hexdigest(),
            "keys_sha256": keys_sha256(self.audit.keys),
            "audit": self.audit.to_json(),
            "split": self.split.to_json(),
        }

    def changed_by(self, interventions: Sequence[Intervention]) -> Self:
        """The same images with the labels that these interventions make of the true ones."""
        labels = changed_labels(interventions, self.true_labels, self.split.train)
        return dataclasses.replace(self, store=dataclasses.replace(self.store, labels=labels))

    def training(self, config: TrainConfig, seed: int) -> Batches:
        """Shuffled and augmented; a function of the seed alone, so both networks share it."""
        augmentation = Augmentation(flip=config.flip or 0.0, degrees=config.rotation)
        return Batches(
            self.store,
            self.split.train,
            config.batch_size,
            seed=seed,
            shuffle=True,
            augmentation=augmentation,
        )

    def plain(self, part: str) -> Batches:
        """The images of "train", "validation" or "test" in order, without augmentation."""
        return Batches(self.store, getattr(self.split, part), EVALUATION_BATCH)


class BadFiles(ValueError):
    """Some images cannot be read, and the config does not say to skip them."""


def load_data(
    config: TrainConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[TrainConfig, Data]:
    """Decode, audit and split; also returns the config with what the data decide filled in.

    Raises BadFiles, before anything is split, unless the config says to skip them.
    """
    source = open_source(config.data, download=config.download, allow_outside=config.allow_outside)
    config = config.resolved(image_size=source.image_size, mirror=source.mirror)
    assert config.image_size is not None
    audit, store = load_images(
        source,
        config.image_size,
        memory_budget=int(config.memory_budget * 2**30),
        progress=progress,
        near_bits=NEAR_TWIN_BITS if config.twins == "near" else None,
    )
    if audit.bad and config.on_bad == "fail":
        raise BadFiles(_bad_files_text(audit, config.data))
    split = split_images(
        audit,
        source.labels,
        kind=config.split,
        seed=config.split_seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
    )
    data = Data(audit, store, split, true_labels=store.labels)
    return config, data.changed_by(config.interventions)


def _bad_files_text(audit: Audit, data: str, n_shown: int = 10) -> str:
    lines = [f"  {bad.key}: {bad.reason}" for bad in audit.bad[:n_shown]]
    if len(audit.bad) > n_shown:
        lines.append(f"  … and {len(audit.bad) - n_shown} more")
    return "\n".join(
        [
            f"Expected every image to be there and readable, but {len(audit.bad)} are not:",
            *lines,
            "Mend or remove them, or leave them out with `--on-bad skip`. "
            f"`gradflow data {data} --all` lists them all.",
        ]
    )


def check_same_data(run: RunDir, now: Mapping[str, Any]) -> None:
    """Refuse to continue a run whose images or split, `now` as Data.to_json, are not the same."""
    before = run.data()
    if any(before[key] != now[key] for key in ("classes", "pixels_sha256", "split")):
        raise ValueError(
            f"Expected the data of {run.path} as they were when it started, but the images or "
            "their split have changed. Start a new run."
        )


def train_network(
    network: NetworkDir,
    config: TrainConfig,
    data: Data,
    accelerator: Accelerator,
    *,
    on_step: Callable[[], None] = lambda: None,
    on_measured: Callable[[int, int], None] = lambda n_done, n: None,
    on_recorder: Callable[[Recorder], None] = lambda recorder: None,
) -> Iterator[tuple[Epoch, Trace | None]]:
    """Train one network, resuming it where it stands; yield each epoch and what it recorded.

    A killed process loses what came after the last checkpoint, and comes to the same end when it
    is resumed. Ends with the evaluation of the last and the best epoch and, of a recorded network,
    with the measurements of the rival explanations, of which it tells `on_measured`. Where it
    records, `on_recorder` gets the Recorder, which holds the loss of the last step.
    """
    model = build_network(network.arch, len(data.class_names), config, seed=network.seed)
    intervening = Intervening(network, config, data)
    intervening.start(model)
    first = {name: weight.cpu().clone() for name, weight in _weights(model).items()}
    state = start_training(model, config, accelerator)
    history, saved = _go_back_to_checkpoint(network, state)
    # Before the Recorder, which then sees gradients as the optimizer receives them.
    intervening.attach(state, saved.get("interventions"))
    recorder = _recorder(network, state, saved.get("recorder"))
    if recorder is not None:
        on_recorder(recorder)
    saver = _Saver(network, recorder, intervening)
    try:
        training, validation = data.training(config, network.seed), data.plain("validation")
        keep = _steps_to_keep(state)

        def after_step() -> None:
            _keep_weights(network, state, keep)
            if recorder is not None:
                recorder.loss = state.loss
            on_step()

        _keep_weights(network, state, keep)
        for epoch in fit(state, training, validation, on_step=after_step):
            history.append(dataclasses.asdict(epoch))
            chunk = None
            if recorder is not None:
                recorder.flush()
                chunk = _recorded_since(network, history)
            saver.after_epoch(state, epoch, history)
            yield epoch, chunk
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
        saver.finish(state, history)
        intervening.save_checks(state)
        _evaluate_network(network, state, data, recorder, intervening, first)
        finish_network(network, config, data, accelerator, on_measured)


def work_of_one(config: TrainConfig, data: Data, n_processes: int) -> Work:
    """What training one network takes, as far as that is known before."""
    training = data.training(config, 0)
    n_batches = training.n_batches(n_processes)
    n_steps = -(-n_batches // (config.batches_per_step or n_batches))
    n_images = {part: len(getattr(data.split, part)) for part in ("train", "validation", "test")}
    # Twice each part, and the training images twice more for the recalibrated loss.
    n_evaluated = 2 * sum(n_images.values()) + 2 * n_images["train"]
    rivals = config.rivals_budget if config.log_grads and config.rivals else 0.0
    return Work(
        n_steps,
        config.epochs,
        validation=FORWARD * n_images["validation"] / config.batch_size,
        ending=FORWARD * n_evaluated / config.batch_size
        + min(rivals, 1.0) * n_steps * config.epochs,
    )


def finish_network(
    network: NetworkDir,
    config: TrainConfig,
    data: Data,
    accelerator: Accelerator,
    on_measured: Callable[[int, int], None] = lambda n_done, n: None,
) -> None:
    """What is left when a network has its evaluation, in case a process was killed before it."""
    network.checkpoint.unlink(missing_ok=True)
    drop_unfinished(network.path)
    # Last, when all else is on disk: a defect here must not cost the training.
    measure_rivals(network, config, data, accelerator, on_measured)


def lacks_rivals(network: NetworkDir, config: TrainConfig) -> bool:
    """Whether the rival explanations of a finished network are wanted and were not measured."""
    return config.log_grads and config.rivals and network.examination() is None


def measure_rivals(
    network: NetworkDir,
    config: TrainConfig,
    data: Data,
    accelerator: Accelerator,
    on_measured: Callable[[int, int], None] = lambda n_done, n: None,
) -> None:
    """Examine the kept weights of a finished network, if that is wanted and was not done.

    As far as `rivals_budget` goes, of the steps that were taken. Then only those weights stay that
    fit into their part of the other budget. What goes wrong is a warning: the training is complete,
    and other networks wait.
    """
    if not lacks_rivals(network, config):
        return
    try:
        found = examine_network(
            network,
            config,
            data,
            device=accelerator.device,
            max_steps=config.rivals_budget * network.history()[-1]["step"],
            progress=on_measured,
        )
    except (RuntimeError, ValueError, ArithmeticError, FileNotFoundError) as error:
        warnings.warn(
            f"The rival explanations of {network.name} could not be measured ({error!r}). Its "
            "training is complete; `gradflow diagnose RUN --measure` tries again, with the folder "
            "of the run or of its study.",
            stacklevel=2,
        )
        return
    network.save_examination(found)
    n_bytes = network.weights("last").stat().st_size
    budget = config.checkpoint_budget * 2**30 / len(config.networks) / len(config.seed_list)
    stay = WEIGHT_STEPS[: int(budget // n_bytes)]
    for step in set(network.weight_steps()) - set(stay):
        network.weights(step).unlink()


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
    recorder = Recorder(
        state.prepared_model,
        state.optimizer,
        every=state.config.record_schedule(),
        cadence=state.config.cadence,
        measures=RECORDED[state.config.optimizer],
        folder=network.path,
        scaler=state.scaler,
        first_step=state.step,
    )
    if saved is not None:
        recorder.load_state_dict(saved)
    return recorder


def _steps_to_keep(state: TrainingState) -> frozenset[int]:
    """Of WEIGHT_STEPS, those that fit into the budget while this network alone is in training."""
    config = state.config
    if not config.log_grads:
        return frozenset()
    n_bytes = sum(tensor.nbytes for tensor in state.model.state_dict().values())
    n_networks = 1 if config.rivals else len(config.networks) * len(config.seed_list)
    return frozenset(WEIGHT_STEPS[: int(config.checkpoint_budget * 2**30 / n_networks // n_bytes)])


def _keep_weights(network: NetworkDir, state: TrainingState, steps: frozenset[int]) -> None:
    if state.step in steps and state.accelerator.is_main_process:
        save_tensors(state.model.state_dict(), network.weights(state.step))


def _recorded_since(network: NetworkDir, history: Sequence[dict[str, Any]]) -> Trace | None:
    """What the last epoch of `history` recorded, or None with a long interval."""
    first_step = history[-2]["step"] if len(history) > 1 else 0
    return network.trace_from(first_step)


@dataclass
class _Saver:
    """Saves checkpoints, seldom enough that they take little of the training time."""

    network: NetworkDir
    recorder: Recorder | None
    intervening: Intervening
    _best: dict[str, Tensor] | None = None  # weights of the best epoch, not yet on disk
    _saved_at: float = 0.0
    _seconds: float = 0.0  # that the last checkpoint took

    def after_epoch(
        self, state: TrainingState, epoch: Epoch, history: list[dict[str, Any]]
    ) -> None:
        if not state.accelerator.is_main_process:
            return
        if epoch.is_best:
            weights = state.model.state_dict()
            self._best = {name: tensor.cpu().clone() for name, tensor in weights.items()}
        if time.monotonic() - self._saved_at >= self._seconds / CHECKPOINT_SHARE:
            self._save(state, history)

    def _save(self, state: TrainingState, history: list[dict[str, Any]]) -> None:
        """The checkpoint comes last: with it, the epochs before it count as done."""
        start = time.monotonic()
        if self._best is not None:
            save_tensors(self._best, self.network.weights("best"))
            self._best = None
        self.network.save_history(history)
        seen: dict[str, Any] = {"interventions": self.intervening.state_dict()}
        if self.recorder is not None:
            seen["recorder"] = self.recorder.state_dict()
        save_tensors(state.to_dict() | seen, self.network.checkpoint)
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - start

    def finish(self, state: TrainingState, history: list[dict[str, Any]]) -> None:
        """Save where training ended, and the weights of the last epoch."""
        self._save(state, history)
        save_tensors(state.model.state_dict(), self.network.weights("last"))


def _evaluate_network(
    network: NetworkDir,
    state: TrainingState,
    data: Data,
    recorder: Recorder | None,
    intervening: Intervening,
    first: Mapping[str, Tensor],
) -> None:
    """Look at the test set, once: with the weights of the last and of the best epoch.

    `first` are the weights before training, to tell how far they have turned.
    """
    evaluation: dict[str, Any] = {}
    text = []
    epochs: dict[Weights, int] = {"last": state.epoch - 1, "best": state.best_epoch}
    for which, epoch in epochs.items():
        load_weights(state.model, network.weights(which))
        evaluation[which] = {"epoch": epoch, "angle_from_start": _angles(first, state.model)}
        model = intervening.evaluated(state)
        for part in ("train", "validation", "test"):
            predictions = predict(model, data.plain(part), state.accelerator)
            evaluation[which][part] = evaluate(
                predictions,
                data.class_names,
                state.config.label_smoothing,
                keep_probabilities=part != "train",
            )
            if (which, part) == ("last", "train"):
                evaluation[which][part]["recalibrated"] = _recalibrated(model, data, state, network)
            text.append(
                f"{network.name}, {which} epoch ({epoch + 1}), {part} set\n"
                + report_text(predictions, data.class_names)
            )
    evaluation["optimizer"] = state.optimizer_facts
    evaluation["recording"] = _recording(recorder)
    evaluation["published"] = published(network.arch, data.class_names)
    original = published_text(network.arch, data.class_names)
    if original is not None:
        text.append(original)
    write_text(network.report, "\n".join(text))
    network.save_evaluation(evaluation)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Of convolutions and linear layers, by name: what has a direction."""
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}


def _angles(first: Mapping[str, Tensor], model: nn.Module) -> dict[str, float]:
    """Between each weight and what it was first, in rad, as the measure `angle_from_start`."""
    angles = {}
    for name, weight in _weights(model).items():
        now, before = (one.cpu().double().flatten() for one in (weight, first[name]))
        chord = torch.linalg.vector_norm(now / now.norm() - before / before.norm())
        angles[name] = float(2 * torch.asin((chord / 2).clamp(max=1)))
    return angles


def _recalibrated(
    model: nn.Module, data: Data, state: TrainingState, network: NetworkDir
) -> dict[str, float]:
    """The training loss with the statistics of all training images in every BatchNorm.

    Running statistics lag behind the weights, and a loss that measures how well a network fits
    must not measure how far they lag.
    """
    batches = data.training(state.config, network.seed).epoch(
        0, device=state.accelerator.device, channels_last=state.config.channels_last
    )
    steady = recalibrated(model, (batch.images for batch in batches))
    predictions = predict(steady, data.plain("train"), state.accelerator)
    return {
        "loss": predictions.loss(state.config.label_smoothing),
        "cross_entropy": predictions.loss(0.0),
        "accuracy": predictions.accuracy,
    }


def _recording(recorder: Recorder | None) -> dict[str, Any] | None:
    """What recording cost, where `max_overhead` had it measured; since the last resume."""
    schedule = recorder.schedule if recorder is not None else None
    if not isinstance(schedule, MaxOverhead) or math.isnan(schedule.overhead):
        return None
    return {
        "share_allowed": schedule.share,
        "share_of_time": schedule.overhead,
        "price_of_a_recorded_step": schedule.price,
        "interval": schedule.interval,
    }
