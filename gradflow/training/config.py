"""TrainConfig: every number of a training run. The defaults are the original study's recipe."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml

from gradflow.interventions import Intervention, batches_per_step, parse
from gradflow.nets import NETWORKS, Init, Shortcut, Stem, stem_for
from gradflow.record import MaxOverhead

BOTH = ("plain_34", "resnet_34")
# A study reads hundreds of configs, and libyaml reads ten times as fast.
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One `gradflow train`: which data, which networks, which recipe, what to record."""

    data: str = "digits"
    """Digits (bundled), a folder of class folders, a folder or CSV file with the columns
    filename,label, or a torchvision data set by name (cifar10, food101, imagenette, …)."""
    download: bool = False
    """Let torchvision download the data set."""
    image_size: int | None = None
    """Side in pixels; by default what suits the data: 224 for photographs, 8 for digits."""
    split: Literal["grouped", "random"] = "grouped"
    """Grouped: twins stay on one side, and validation is a part of its own. Random: the original
    study's 80/20, in which validation and test set are the same."""
    twins: Literal["near", "exact"] = "near"
    """What the grouped split keeps together: pictures that look the same (re-encoded, cropped, with
    a watermark), or exact copies only, which suits pictures that all look alike (X-rays)."""
    split_seed: int = 0
    """Which split; the same for all seeds, so that they differ by training alone."""
    val_fraction: float = 0.1
    """Share of the distinct images that validate (grouped split)."""
    test_fraction: float = 0.2
    """Share of the images that test."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What to do with files that cannot be read."""
    memory_budget: float = 4.0
    """GiB of decoded images to hold in memory; beyond it they go to a temporary file."""

    arch: str = "both"
    """Both (plain_34 and resnet_34), or names from plain_18, resnet_18, plain_34, resnet_34,
    separated by commas."""
    shortcut: Shortcut = "B"
    """Where a shortcut changes shape. A: pad with zeros, no parameters; B: project."""
    stem: Literal["auto", "photo", "small"] = "auto"
    """Photo: 7×7 convolution with stride and max pooling; small: 3×3 without (up to 48 px)."""
    width: float = 1.0
    """Channels of every layer as a share of the published 64 to 512; 0.25 trains much faster."""
    init: Init = "kaiming"
    """Kaiming: torchvision's, normal by fan-out; torch-default: PyTorch's own."""
    seeds: str = "1"
    """A count (5: the seeds 0 to 4), or the seeds themselves (3,7; one alone with a comma: 7,)."""

    epochs: int = 50
    """Passes over the training set, at most."""
    batch_size: int = 50
    """Images per optimizer step, over all processes together."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimizer."""
    lr: float = 6e-4
    """Learning rate at the start."""
    weight_decay: float = 1e-4
    """Weight decay, on all parameters."""
    momentum: float = 0.9
    """Momentum of SGD."""
    label_smoothing: float = 0.2
    """Share of the target spread over all classes."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rate falls, epoch by epoch."""
    warmup: int = 0
    """Epochs in which it first rises to its full size, in equal steps; the schedule follows."""
    lr_sum: Literal["own", "step"] = "own"
    """Step: scale the learning rate so that its sum over all epochs is that of the step schedule
    without warm-up, so that schedules are compared at an equal sum."""
    step_size: int = 5
    """Epochs between two drops (step schedule)."""
    gamma: float = 0.1
    """Factor of one drop (step schedule)."""
    patience: int = 10
    """Stop after so many epochs without a lower validation loss; 0 never stops. The original's
    early stopping never fired: 0 reproduces it."""
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
    """fp32 (without TF32) measures true; the others are faster on a GPU."""
    channels_last: bool = True
    """Memory layout of images and weights; faster almost everywhere."""

    log_grads: bool = False
    """Record gradients, activations and updates of every layer."""
    every: int = 1
    """Record at one step in so many."""
    max_overhead: str = "off"
    """Record as often as this share of the training time allows, such as 2%, instead of at every
    so many steps; the run tells what it cost."""
    checkpoint_budget: float = 2.0
    """GiB for the weights at single steps (0 to 270, the most telling first), from which the rival
    explanations are measured: of the network in training, and then of all networks together."""
    rivals: bool = True
    """Measure the rival explanations from the kept weights when training has ended."""
    wandb: Literal["offline", "online", "off"] = "offline"
    """Weights & Biases: a local file (no account), the service, or nothing."""
    project: str = "gradflow"
    """W&B project."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run as well; needs tensorboard."""
    out: Path = Path("runs")
    """The folder in which the run gets a folder of its own."""

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("epochs", "batch_size", "step_size", "every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "gamma", "memory_budget", "width"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "patience", "split_seed", "checkpoint_budget"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("momentum", "label_smoothing"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("val_fraction", "test_fraction"):
            _check(name, getattr(self, name), 0 < getattr(self, name) < 1, "between 0 and 1")
        _check("rotation", self.rotation, 0 <= self.rotation <= 180, "in [0, 180]")
        _check("flip", self.flip, self.flip is None or 0 <= self.flip <= 1, "in [0, 1]")
        for name in ("data", "out"):
            path = str(getattr(self, name))
            is_utf8 = path.encode(errors="ignore").decode() == path  # else no file can hold it
            _check(name, ascii(path), is_utf8, "a path in UTF-8 (rename the folder)")
        fits = 0 <= self.warmup < self.epochs
        _check("warmup", self.warmup, fits, "0 or more, and less than `epochs`")
        is_large = self.image_size is None or self.image_size >= 8
        _check("image_size", self.image_size, is_large, "at least 8")
        _check("batch_size", self.batch_size, self.batch_size >= 2, "at least 2 (BatchNorm)")
        if self.max_overhead != "off" and self.every != 1:
            raise ValueError(
                f"Expected `every` or `max_overhead`, but got both ({self.every} and "
                f"{self.max_overhead}). Leave one out."
            )
        # These check themselves.
        _ = self.networks, self.seed_list, self.record_schedule(), self.batches_per_step

    def _check_choices(self) -> None:
        """A value from Python or a file has not passed through the command line's own check."""
        for field in dataclasses.fields(self):
            choices, value = get_args(field.type), getattr(self, field.name)
            if choices and isinstance(choices[0], str) and value not in choices:
                raise ValueError(f"Expected `{field.name}` in {choices}, but got {value!r}.")

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the networks to train."""
        names = BOTH if self.arch == "both" else tuple(self.arch.replace(" ", "").split(","))
        unknown = [name for name in names if name not in NETWORKS]
        if unknown or len(set(names)) < len(names):
            raise ValueError(
                f"Expected `arch` to be 'both' or different names of {', '.join(NETWORKS)}, "
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
        seeds = numbers if "," in self.seeds else tuple(range(sum(numbers)))
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError(
                "Expected `seeds` to be a count such as 5, or different seeds such as 3,7, "
                f"but got {self.seeds!r}."
            )
        return seeds

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """What is changed on purpose, in the order of `intervene`."""
        return parse(self.intervene)

    @property
    def batches_per_step(self) -> int:
        """Batches whose mean gradient makes one optimizer step; 0: all of an epoch."""
        return batches_per_step(self.interventions)

    def record_schedule(self) -> int | MaxOverhead:
        """When to record, for the Recorder of one network.

        >>> TrainConfig(max_overhead="2%").record_schedule().share
        0.02
        """
        if self.max_overhead == "off":
            return self.every
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
        """The config with what the data decide filled in."""
        size = self.image_size or image_size
        stem: Stem = stem_for(size) if self.stem == "auto" else self.stem
        flip = (0.5 if mirror else 0.0) if self.flip is None else self.flip
        return dataclasses.replace(self, image_size=size, stem=stem, flip=flip)

    def to_yaml(self) -> str:
        """The config as YAML that `--config` reads."""
        fields = dataclasses.asdict(self) | {"out": str(self.out)}
        return yaml.safe_dump(fields, sort_keys=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of what `to_yaml` gives. Raises ValueError where it is something else."""
        try:
            fields = yaml.load(path.read_text(encoding="utf-8"), Loader=SAFE_LOADER)  # noqa: S506
        except (yaml.YAMLError, UnicodeDecodeError):
            fields = None
        if not isinstance(fields, dict) or "out" not in fields:  # its last line
            raise ValueError(
                f"Expected the whole configuration of a run in {path}, but the file is empty, cut "
                "off or no YAML. Put a copy of it back, or start a new run."
            )
        unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(
                f"Expected the fields of this version of gradflow in {path}, but got "
                f"{', '.join(sorted(unknown))} as well. Use the version that wrote it."
            )
        return cls(**fields | {"out": Path(fields["out"])})


def _check(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"Expected `{name}` to be {expected}, but got {value}.")
