"""From pictures to batches: open a source, audit and load it, split it, take its batches."""

from gradflow.data.audit import Audit, BadFile, audit
from gradflow.data.batches import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    Batch,
    Batches,
    ImageStore,
    load_images,
    normalise,
    to_uint8,
)
from gradflow.data.photos import BadImage, read_image
from gradflow.data.sources import Source, keys_sha256, open_source
from gradflow.data.split import Split, split
from gradflow.data.twins import NEAR_TWIN_BITS, NEAR_TWIN_SIDE

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NEAR_TWIN_BITS",
    "NEAR_TWIN_SIDE",
    "Audit",
    "Augmentation",
    "BadFile",
    "BadImage",
    "Batch",
    "Batches",
    "ImageStore",
    "Source",
    "Split",
    "audit",
    "keys_sha256",
    "load_images",
    "normalise",
    "open_source",
    "read_image",
    "split",
    "to_uint8",
]
