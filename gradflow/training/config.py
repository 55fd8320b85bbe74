"""TrainConfig: every number of a training run. The defaults are the original study's recipe."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from gradflow.architectures import (
    ARCHITECTURES,
    CHANNELS_PER_STAGE,
    Init,
    Shortcut,
    Stem,
    stem_for,
)
from gradflow.files import DamagedFile, read_yaml, yaml_text
from gradflow.record.schedule import DEFAULT_CADENCE
from gradflow.training.recipes import recipe_text
from gradflow.typed import shown, typed, typed_fields

if TYPE_CHECKING:
    from gradflow.interventions import Intervention
    from gradflow.record import MaxOverhead

BOTH = ("plain_34", "resnet_34")
MAX_SEEDS = 1000  # each is a training
NUMBERS_AS_TEXT = ("seeds", "max_overhead")  # a file may write 3 or 0.02 for them
WHOLE = "the whole configuration of a run"

# What decides the images of a run, their split and their true labels.
DATA_FIELDS = (
    "data", "download", "allow_outside", "image_size", "split", "twins", "split_seed",
    "val_fraction", "test_fraction", "on_bad", "memory_budget",
)  # fmt: skip

# The smallest and the largest value of each number. What no machine or no method can do is refused
# before a run has a folder; a value beyond these is a slip of the pen.
LIMITS: dict[str, tuple[float, float]] = {
    "image_size": (8, 4096),
    "split_seed": (0, 2**32 - 1),  # what NumPy's and scikit-learn's generators take
    "memory_budget": (1e-6, 1e6),
    "width": (1 / 64, 16),
    "epochs": (1, 100_000),
    "batch_size": (2, 1_000_000),  # BatchNorm cannot train on one image
    "lr": (1e-30, 1e30),
    "weight_decay": (0, 1e6),
    "momentum": (0, 0.9999),
    "label_smoothing": (0, 0.9999),
    "step_size": (1, 100_000),
    "gamma": (1e-30, 1e3),
    "patience": (0, 100_000),
    "min_delta": (0, 1e6),
    "flip": (0, 1),
    "rotation": (0, 180),
    "every": (1, 10**9),
    "cadence": (1, 10**9),
    "checkpoint_budget": (0, 1e6),
    "rivals_budget": (0, math.inf),
    "val_fraction": (1e-6, 1 - 1e-6),
    "test_fraction": (1e-6, 1 - 1e-6),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One `gradflow train`: which data, which networks, which recipe, what to record."""

    data: str = "digits"
    """Digits (bundled), a folder of class folders, a folder or CSV file with the columns
    filename,label, or a torchvision data set by name (cifar10, food101, imagenette, …)."""
    download: bool = False
    """Let torchvision download the data set."""
    allow_outside: bool = False
    """Let a table of labels name files outside its own folder."""
    image_size: int | None = None
    """Side in pixels; by default 224 for photographs and 8 for digits."""
    split: Literal["grouped", "random"] = "grouped"
    """Grouped: copies of a picture stay on one side, and validation is a separate part. Random: the
    original study's 80/20, in which validation and test set are the same."""
    twins: Literal["near", "exact"] = "near"
    """What the grouped split keeps together: pictures that look the same (re-encoded, cropped, with
    a watermark), or exact copies only, which suits pictures that all look alike (X-rays)."""
    split_seed: int = 0
    """Which split; the same for all seeds, so that they differ only in training."""
    val_fraction: float = 0.1
    """Share of the distinct images for validation (grouped split)."""
    test_fraction: float = 0.2
    """Share of the images for the test."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What to do with files that cannot be read."""
    memory_budget: float = 4.0
    """GiB of decoded images to hold in memory; more go to a temporary file."""

    arch: str = "both"
    """Both (plain_34 and resnet_34), or names from plain_18, resnet_18, plain_34, resnet_34,
    separated by commas."""
    shortcut: Shortcut = "B"
    """How a shortcut changes shape. A: pad with zeros, no parameters; B: project."""
    stem: Literal["auto", "photo", "small"] = "auto"
    """Photo: 7×7 convolution with stride and max pooling; small: 3×3 without (up to 48 px)."""
    width: float = 1.0
    """Channels of every layer as a share of the published 64 to 512 (digits: 0.25)."""
    init: Init = "kaiming"
    """Kaiming: torchvision's, normal by fan-out; torch-default: PyTorch's own."""
    seeds: str = "1"
    """A count (5: the seeds 0 to 4), or the seeds themselves (3,7; one alone with a comma: 7,)."""

    epochs: int = 50
    """Passes over the training set, at most (digits: 10)."""
    batch_size: int = 50
    """Images per optimizer step, over all processes together."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimizer."""
    lr: float = 6e-4
    """Learning rate at the start (digits: 0.002)."""
    weight_decay: float = 1e-4
    """Weight decay, on all parameters."""
    momentum: float = 0.9
    """Momentum of SGD."""
    label_smoothing: float = 0.2
    """Share of the target spread over all classes."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rate falls, epoch by epoch (digits: cosine)."""
    warmup: int = 0
    """Epochs in which the learning rate first rises, in equal steps; the schedule follows."""
    lr_sum: Literal["own", "step"] = "own"
    """Step: scale the learning rate so that its sum over all epochs is that of the step schedule
    without warm-up, so that schedules are compared at an equal sum."""
    step_size: int = 5
    """Epochs between two drops (step schedule)."""
    gamma: float = 0.1
    """Factor of one drop (step schedule)."""
    patience: int = 10
    """Stop after so many epochs without a lower validation loss; 0 never stops. The original
    study's early stopping never fired, so 0 reproduces it."""
    min_delta: float = 0.0
    """By how many nats a validation loss must fall to count for `patience`; 0 as in the original
    study, where a learning rate near 0 keeps lowering it in the fourth decimal."""
    flip: float | None = None
    """Probability of a horizontal flip; by default 0.5, and 0 where mirrored images change their
    class (digits)."""
    rotation: float = 15.0
    """Largest rotation in degrees, either way."""

    intervene: str = ""
    """What to change on purpose, such as "gradient_scale(layers=1-17, factor=0.001)"; several are
    separated by semicolons. docs/interventions.md lists them."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """fp32 (without TF32) is the most accurate; the others are faster on a GPU."""
    channels_last: bool = True
    """Use this memory layout where it is safe and faster: on a GPU, and on a CPU for networks whose
    first stage has 8 to 32 channels."""

    alarms: bool = True
    """Warn during the training, once per kind: NaN, a layer without gradient, dead channels,
    updates too large or too small, gradients as small as Adam's ε, a loss that does not fall. All
    but the last need --log-grads."""
    log_grads: bool = False
    """Record gradients, activations and updates of every layer."""
    every: int = 1
    """Record one step in so many."""
    cadence: int = DEFAULT_CADENCE
    """Gradients are measured at every recorded step; outputs, updates, weights and Adam's moments
    at the first 16 and then at one in so many. 1: everything at every recorded step."""
    histograms: bool = False
    """Count too how many elements of each weight and of its gradient lie between which powers of
    two, for the report and the trackers. Needs --log-grads."""
    max_overhead: str = "off"
    """Record as often as this share of the training time allows, such as 2%, instead of a fixed
    interval; the run reports what it cost."""
    checkpoint_budget: float = 2.0
    """GiB for the weights at single steps (0, 10 and 90, in this order), from which the rival
    explanations are measured: for the network in training, then for all networks together."""
    rivals: bool = True
    """Measure the rival explanations from the kept weights when training has ended."""
    rivals_budget: float = 0.1
    """What that may cost, as a share of the training's optimizer steps; the rest waits for
    `gradflow diagnose --measure`. inf measures all at once."""
    wandb: Literal["offline", "online", "off"] = "offline"
    """Weights & Biases: a local file (no account), the service, or nothing."""
    project: str = "gradflow"
    """W&B project."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run; needs tensorboard."""
    out: Path = Path("runs")
    """The folder in which the run gets its own folder."""

    def __post_init__(self) -> None:
        self._check_choices()
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            holds = value is None or low <= value <= high
            _check(name, value, holds, f"from {low:.10g} to {high:.10g}")
        is_given = bool(self.data.strip())
        _check("data", "an empty one", is_given, "the path or the name of images")
        for name in ("data", "out"):
            path = str(getattr(self, name))
            # Else no file can hold it.
            is_utf8 = path.encode(errors="ignore").decode() == path and "\0" not in path
            _check(name, ascii(path), is_utf8, "a path in UTF-8 (rename the folder)")
        if self.wandb != "off":
            self._check_project()
        fits = 0 <= self.warmup < self.epochs
        _check("warmup", self.warmup, fits, "0 or more, and less than `epochs`")
        if self.max_overhead != "off" and self.every != 1:
            raise ValueError(
                f"Expected `every` or `max_overhead`, but got both ({self.every} and "
                f"{self.max_overhead}). Leave one out."
            )
        if self.histograms and not self.log_grads:
            raise ValueError(
                "Expected `log_grads` with `histograms`, which are counted where gradients are "
                "recorded. Add --log-grads, or leave --histograms out."
            )
        # These check themselves.
        _ = self.networks, self.seed_list, self.record_schedule(), self.batches_per_step

    def _check_project(self) -> None:
        """As W&B would, when the run has a folder already."""
        name = self.project.strip()
        holds = 0 < len(name) <= 128 and not set(name) & set("/\\#?%:") and name.isprintable()
        _check("project", shown(name), holds, "1 to 128 characters, none of / \\ # ? % : (for W&B)")

    def _check_choices(self) -> None:
        """A value from Python or a file has not passed through the command line's own check."""
        for name, choices in _choices().items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"Expected `{name}` in {choices}, but got {value!r}.")

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the networks to train."""
        names = BOTH if self.arch == "both" else tuple(self.arch.replace(" ", "").split(","))
        unknown = [name for name in names if name not in ARCHITECTURES]
        if unknown or len(set(names)) < len(names):
            raise ValueError(
                f"Expected `arch` to be 'both' or different names of {', '.join(ARCHITECTURES)}, "
                f"but got {self.arch!r}."
            )
        return names

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds to train: a bare number is a count.

        >>> TrainConfig(seeds="3").seed_list, TrainConfig(seeds="3,7").seed_list
        ((0, 1, 2), (3, 7))
        """
        try:
            numbers = tuple(int(part) for part in self.seeds.split(",") if part.strip())
        except ValueError:
            numbers = ()
        if "," not in self.seeds:
            numbers = tuple(range(min(sum(numbers), MAX_SEEDS + 1)))
        seeds = numbers if len(numbers) <= MAX_SEEDS else ()
        if not seeds or not 0 <= min(seeds) <= max(seeds) < 2**32 or len({*seeds}) < len(seeds):
            raise ValueError(
                "Expected `seeds` to be a count such as 5, or different seeds such as 3,7, at most "
                f"{MAX_SEEDS} and each below 2³², but got {shown(self.seeds)}."
            )
        return seeds

    @property
    def interventions(self) -> "tuple[Intervention, ...]":
        """What is changed on purpose, in the order of `intervene`."""
        if not self.intervene:  # as mostly: nothing to load torch for
            return ()
        from gradflow.interventions import parse

        return parse(self.intervene)

    @property
    def batches_per_step(self) -> int:
        """Batches whose mean gradient makes one optimizer step; 0: all of an epoch."""
        each = (one.batches_per_step for one in self.interventions)
        counts = [n for n in each if n != 1]
        if len(counts) > 1:
            raise ValueError("Expected accumulate(…) at most once, but got it several times.")
        return counts[0] if counts else 1

    def record_schedule(self) -> "int | MaxOverhead":
        """When to record, for the Recorder of one network.

        >>> TrainConfig(max_overhead="2%").record_schedule().share
        0.02
        """
        if self.max_overhead == "off":
            return self.every
        from gradflow.record import MaxOverhead

        text = self.max_overhead.strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            return MaxOverhead(share)
        except ValueError:
            raise ValueError(
                "Expected `max_overhead` to be a share of the training time, such as 2% or 0.02, "
                f"but got {self.max_overhead!r}."
            ) from None

    def resolved(self, *, image_size: int, mirror: bool) -> Self:
        """The config with what the data and the machine decide filled in."""
        size = self.image_size or image_size
        stem: Stem = stem_for(size) if self.stem == "auto" else self.stem
        flip = (0.5 if mirror else 0.0) if self.flip is None else self.flip
        # Below 8 channels PyTorch 2.13 writes beyond its memory in the backward pass of a 1×1
        # convolution with stride 2. A step on a CPU took 0.7 to 1.1 times as long as in the other
        # layout with 8 to 32, and 1.0 to 1.3 times with 64 (resnet_18, plain_34; 8 to 64 px).
        on_cpu = self.device == "cpu" or not _has_cuda()
        suits = 8 <= round(CHANNELS_PER_STAGE[0] * self.width) <= (32 if on_cpu else math.inf)
        layout = self.channels_last and suits
        return dataclasses.replace(
            self, image_size=size, stem=stem, flip=flip, channels_last=layout
        )

    def to_yaml(self) -> str:
        """The config as YAML that `--config` reads."""
        fields = dataclasses.asdict(self) | {"out": str(self.out)}
        own = recipe_text(fields)
        comment = f"# The recipe of {self.data}: {own}.\n" if own else ""
        return comment + yaml_text(fields)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of what `to_yaml` gives. Raises DamagedFile where it is something else."""
        advice = "Restore a copy of it, or start a new run."
        given, _ = read_yaml(path, WHOLE, advice)
        if not isinstance(given, dict) or "out" not in given:  # its last line
            raise DamagedFile(path, WHOLE, "the file is empty, cut off or no YAML", advice)
        try:
            return cls(**typed_fields(cls, given, "the configuration"))
        except ValueError as error:
            advice += " If another version of gradflow wrote it, use that version."
            raise DamagedFile(path, WHOLE, error, advice) from None

    @classmethod
    def read_some(cls, path: Path) -> dict[str, Any]:
        """The fields that a file for `--config` sets. A ValueError names file and line."""
        if not path.is_file():
            raise FileNotFoundError(f"Expected a config file, but there is no file {path}.")
        content, lines = read_yaml(path, "YAML with options of `gradflow train`", "Correct it.")
        given = typed({} if content is None else content, dict, f"the content of {path}")
        found: dict[str, Any] = {}
        for name, value in given.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            value = str(value) if name in NUMBERS_AS_TEXT and is_number else value
            try:
                field = typed_fields(cls, {name: value}, "a training")
                if name not in ("warmup", "histograms"):  # whether they fit, other fields decide
                    cls(**field)
                found |= field
            except ValueError as error:
                raise ValueError(f"{path}, line {lines.get(str(name), 1)}: {error}") from None
        return found


def _has_cuda() -> bool:
    import torch  # what only asks for help need not wait for it

    return torch.cuda.is_available()


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    """By field, the values of those that are one of some words."""
    found = {field.name: get_args(field.type) for field in dataclasses.fields(TrainConfig)}
    return {name: words for name, words in found.items() if words and isinstance(words[0], str)}


def _check(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"Expected `{name}` to be {expected}, but got {value}.")
