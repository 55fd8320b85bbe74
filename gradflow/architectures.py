"""What can be asked of gradflow's networks, in words: without torch, so that `--help` is quick."""

from typing import Literal

ARCHITECTURES = ("plain_18", "resnet_18", "plain_34", "resnet_34")

CHANNELS_PER_STAGE = (64, 128, 256, 512)

Shortcut = Literal["A", "B"]
Stem = Literal["photo", "small"]
Init = Literal["kaiming", "torch-default"]

# The photo stem divides the side by 4 and the stages divide it by 8 more. Up to 48 px that leaves
# one pixel to the last stage, so such images (CIFAR, digits) get the stem without stride.
LARGEST_SMALL = 48


def stem_for(image_size: int) -> Stem:
    """The stem that suits images of `image_size` pixels a side."""
    return "small" if image_size <= LARGEST_SMALL else "photo"
