"""Training one network: a generator that yields epochs. The caller decides what to do with them."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from gradflow.data import Batch, Batches
from gradflow.record import NonFinite
from gradflow.training.config import TrainConfig
from gradflow.training.evaluate import predict
from gradflow.training.schedule import lr_factors

# How far a training has come: what a checkpoint holds beside tensors.
PROGRESS = ("epoch", "step", "best_val_loss", "best_epoch", "stop_val_loss", "stop_epoch")

# Reading a loss waits for the device, so losses are read some steps at a time.
LOSSES_READ_TOGETHER = 16


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite at `step` (optimizer steps before it).

    `first` is where records saw the first NaN or inf, if there are records.
    """

    def __init__(self, step: int, loss: float, lr: float, first: NonFinite | None = None) -> None:
        where = "records (--log-grads) show the first layer with non-finite values."
        if first is not None:
            where = (
                f"the first recorded NaN or inf is at {first.site}, step {first.first_step} "
                f"({first.measure})."
            )
        super().__init__(
            f"The loss was {loss} at step {step} (learning rate {lr:g}). Lower the learning rate; "
            + where
        )
        self.step, self.loss, self.lr, self.first = step, loss, lr, first


@dataclass(frozen=True)
class Epoch:
    """One pass over the training set and the look at the validation set after it.

    Losses in nats, with label smoothing; training figures are running means in train mode over
    augmented images.
    """

    index: int
    step: int  # optimizer steps done after it
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    is_best: bool  # the lowest validation loss so far
    seconds: float  # of training, without validation
    step_losses: tuple[float, ...]


@dataclass
class TrainingState:
    """One network in training. `to_dict` holds everything that changes: a checkpoint."""

    config: TrainConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: Optimizer
    scheduler: lr_scheduler.LRScheduler
    prepared_model: nn.Module  # the same, in accelerate's wrappers for the training step
    prepared_optimizer: Optimizer
    epoch: int = 0
    step: int = 0
    best_val_loss: float = float("inf")
    best_epoch: int = -1
    # For early stopping: the last epoch that was better by `min_delta`, and its loss.
    stop_val_loss: float = float("inf")
    stop_epoch: int = -1
    loss: Tensor | None = None  # nats, of the last step

    @property
    def scaler(self) -> Any:
        """The GradScaler of float16 training, else None."""
        return self.accelerator.scaler

    @property
    def optimizer_facts(self) -> dict[str, Any]:
        """Of the recipe what the optimizer itself tells, by the names of the config."""
        group = self.optimizer.param_groups[0]
        told = {name: group[name] for name in ("weight_decay", "momentum") if name in group}
        return {"optimizer": type(self.optimizer).__name__.lower()} | told

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers, for `save_tensors`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            "progress": [getattr(self, name) for name in PROGRESS],
        }

    def load_dict(self, saved: dict[str, Any]) -> None:
        """Go back to what `to_dict` saved."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
        for name, value in zip(PROGRESS, saved["progress"], strict=True):
            setattr(self, name, value)

    def saw_validation(self, loss: float) -> bool:
        """Whether the epoch that ends with this validation loss is the best so far.

        The first one is, even where its loss is NaN: there must be one.
        """
        is_first = self.best_epoch < 0
        is_best = is_first or loss < self.best_val_loss
        loss = math.inf if math.isnan(loss) else loss
        if is_best:
            self.best_val_loss, self.best_epoch = loss, self.epoch
        if is_first or loss < self.stop_val_loss - self.config.min_delta:
            self.stop_val_loss, self.stop_epoch = loss, self.epoch
        return is_best


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device, mixed precision and data parallelism, with float32 arithmetic as asked for.

    cuDNN computes convolutions in TF32 (10 bits of mantissa) unless told otherwise, and its
    fastest kernels differ from run to run: neither suits a measuring instrument.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("Expected a CUDA device, but PyTorch sees none. Use `--device cpu`.")
    tf32 = config.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    mixed = config.precision if config.precision in ("bf16", "fp16") else "no"
    try:
        return Accelerator(cpu=config.device == "cpu", mixed_precision=mixed)
    except ValueError as error:  # what torchrun sets was left over, or is not whole
        raise ValueError(
            f"Expected the environment of one process, or the whole one that torchrun sets, but "
            f"got: {error}. Unset WORLD_SIZE, RANK, LOCAL_RANK and MASTER_ADDR, or use torchrun."
        ) from None


def start_training(
    model: nn.Module, config: TrainConfig, accelerator: Accelerator
) -> TrainingState:
    """A network at step 0 on its device, with the optimizer and schedule of the config."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = _optimizer(model, config)
    return TrainingState(
        config,
        accelerator,
        model,
        optimizer,
        _scheduler(optimizer, config),
        *accelerator.prepare(model, optimizer),
    )


def fit(
    state: TrainingState,
    training: Batches,
    validation: Batches,
    *,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[Epoch]:
    """Train from where `state` stands to the last epoch, or until early stopping.

    When an epoch is yielded, `state` holds what a checkpoint needs to go on after it. Raises
    NonFiniteLoss.
    """
    try:
        while state.epoch < state.config.epochs and not _should_stop(state):
            yield _one_epoch(state, training, validation, on_step)
    finally:
        state.accelerator.free_memory()  # it keeps what it prepared, and the next network comes


def _should_stop(state: TrainingState) -> bool:
    """Whether `patience` epochs have gone by since one lowered the validation loss enough."""
    patience = state.config.patience
    return patience > 0 and state.epoch - 1 - state.stop_epoch >= patience


def _one_epoch(
    state: TrainingState, training: Batches, validation: Batches, on_step: Callable[[], None]
) -> Epoch:
    lr = float(state.optimizer.param_groups[0]["lr"])
    start = time.perf_counter()
    losses = train_steps(state, training, on_step)
    seconds = time.perf_counter() - start
    val_loss, val_accuracy = _validate(state, validation)
    is_best = state.saw_validation(val_loss)
    state.scheduler.step()
    state.epoch += 1
    return Epoch(
        index=state.epoch - 1,
        step=state.step,
        lr=lr,
        train_loss=losses.total_loss / losses.n_images,
        train_accuracy=losses.n_correct / losses.n_images,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        is_best=is_best,
        seconds=seconds,
        step_losses=tuple(losses.values),
    )


def train_steps(
    state: TrainingState, training: Batches, on_step: Callable[[], None] = lambda: None
) -> "StepLosses":
    """The training steps of one epoch, without a look at the validation set."""
    accelerator = state.accelerator
    losses = StepLosses(state)
    state.model.train()
    batches = training.epoch(
        state.epoch,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        channels_last=state.config.channels_last,
    )
    sizes = training.batch_sizes(accelerator.num_processes)
    per_step = state.config.batches_per_step or len(sizes)
    for start in range(0, len(sizes), per_step):
        n_images = sum(sizes[start : start + per_step])
        loss, n_correct = _train_step(state, islice(batches, per_step), n_images)
        state.step += 1
        state.loss = loss
        losses.add(loss, n_correct, n_images)
        on_step()
    losses.read()
    return losses


def _train_step(
    state: TrainingState, batches: Iterable[Batch], n_images: int
) -> tuple[Tensor, Tensor]:
    """One optimizer step on the mean gradient of `n_images`, mostly those of a single batch.

    Returns the loss and the number of images classified rightly.
    """
    state.prepared_optimizer.zero_grad()
    total = torch.zeros((), device=state.accelerator.device)
    n_correct = torch.zeros((), dtype=torch.int64, device=state.accelerator.device)
    for batch in batches:
        logits = state.prepared_model(batch.images)
        # DistributedDataParallel averages the gradients of the processes, whose shares of a batch
        # may differ by one image: divided like this, the average is the mean over all images.
        loss = F.cross_entropy(
            logits, batch.labels, label_smoothing=state.config.label_smoothing, reduction="sum"
        ) * (state.accelerator.num_processes / n_images)
        state.accelerator.backward(loss)
        total += loss.detach()
        n_correct += (logits.detach().argmax(1) == batch.labels).sum()
    state.prepared_optimizer.step()
    return total, n_correct


@dataclass
class StepLosses:
    """The losses of an epoch: left on the device, read and checked some at a time."""

    state: TrainingState
    values: list[float] = field(default_factory=list)
    total_loss: float = 0.0  # summed over images
    n_correct: int = 0
    n_images: int = 0
    _unread: list[Tensor] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)

    def add(self, loss: Tensor, n_correct: Tensor, n_images: int) -> None:
        self._unread.append(torch.stack([loss, n_correct.to(loss.dtype)]))
        self._sizes.append(n_images)
        if len(self._unread) >= LOSSES_READ_TOGETHER:
            self.read()

    def read(self) -> None:
        """Wait for the device; with several processes, average over them."""
        if not self._unread:
            return
        accelerator = self.state.accelerator
        table = accelerator.reduce(torch.stack(self._unread), reduction="mean").tolist()
        first_step = self.state.step - len(self._unread)
        for i, ((loss, correct), n_images) in enumerate(zip(table, self._sizes, strict=True)):
            if not math.isfinite(loss):
                lr = float(self.state.optimizer.param_groups[0]["lr"])
                raise NonFiniteLoss(first_step + i, loss, lr)
            self.values.append(loss)
            self.total_loss += loss * n_images
            self.n_correct += round(correct * accelerator.num_processes)
            self.n_images += n_images
        self._unread, self._sizes = [], []


def _validate(state: TrainingState, validation: Batches) -> tuple[float, float]:
    """Loss and accuracy, computed by the main process and told to the others.

    BatchNorm's running statistics differ between processes until the next forward pass, and all
    must decide alike when to stop.
    """
    result = [0.0, 0.0]
    if state.accelerator.is_main_process:
        predictions = predict(state.model, validation, state.accelerator)
        result = [predictions.loss(state.config.label_smoothing), predictions.accuracy]
    loss, accuracy = broadcast_object_list(result)
    return float(loss), float(accuracy)


def _optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    # Fused: one pass over the parameters in place of several; three times as fast on a CPU.
    if config.optimizer == "adamw":
        return AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    return SGD(
        model.parameters(),
        config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _scheduler(optimizer: Optimizer, config: TrainConfig) -> lr_scheduler.LRScheduler:
    if config.warmup or config.lr_sum != "own":
        factors = lr_factors(config)
        return lr_scheduler.LambdaLR(
            optimizer, lambda epoch: factors[min(epoch, config.epochs - 1)]
        )
    if config.schedule == "step":
        return lr_scheduler.StepLR(optimizer, config.step_size, config.gamma)
    if config.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.epochs)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
