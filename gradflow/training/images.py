"""The images of a run: decoded, audited and split, and in batches for what each is for."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from gradflow.data import (
    NEAR_TWIN_BITS,
    Audit,
    Augmentation,
    Batch,
    Batches,
    ImageStore,
    Split,
    keys_sha256,
    load_images,
    open_source,
)
from gradflow.data import split as split_images
from gradflow.interventions import Intervention
from gradflow.training.config import TrainConfig
from gradflow.training.rundir import RunDir

EVALUATION_BATCH = 200  # images; without gradients this fits where a training batch does


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
        labels = self.true_labels
        for intervention in interventions:
            labels = intervention.change_labels(labels, self.split.train)
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

    def first_epoch(
        self, config: TrainConfig, seed: int, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """The training batches of the first epoch, those of all processes together."""
        batches = self.training(config, seed)
        return batches.epoch(0, device=device, channels_last=config.channels_last)

    def in_order(self, part: str) -> Batches:
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
            "Repair or remove them, or leave them out with `--on-bad skip`. "
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
