"""Plain and residual networks from one block.

A plain network is a residual network whose skip connection has strength 0: nothing else differs,
so a difference between the two can only come from the skip connections.

He et al. 2015, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385
"""

import hashlib
from collections.abc import Callable
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.architectures import CHANNELS_PER_STAGE, Init, Shortcut, Stem
from gradflow.lazy import renamed_arguments

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class PadShortcut(nn.Module):
    """Option A of He et al. 2015, section 3.3: every `stride`-th pixel, new channels zero."""

    def __init__(self, stride: int, n_new_channels: int) -> None:
        super().__init__()
        self.stride, self.n_new_channels = stride, n_new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.n_new_channels))


class BasicBlock(nn.Module):
    """`relu(branch(x) + skip · shortcut(x))`, the branch being conv-norm-relu-conv-norm.

    With `skip` 0 there is no shortcut at all, and no projection. Nothing is done in place and
    every ReLU is a module of its own, so that hooks and attributions see each activation.
    """

    def __init__(
        self, n_in: int, n_out: int, stride: int, *, skip: float, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.skip = skip
        self.downsample = _shortcut(n_in, n_out, stride, shortcut) if skip != 0 else None
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.skip != 0:
            identity = x if self.downsample is None else self.downsample(x)
            # skip = 1 adds and does not multiply, so that it equals torchvision's to the last bit.
            out = out + (identity if self.skip == 1 else self.skip * identity)
        activation: Tensor = self.relu2(out)
        return activation


def _shortcut(n_in: int, n_out: int, stride: int, shortcut: Shortcut) -> nn.Module | None:
    if stride == 1 and n_in == n_out:
        return None
    if shortcut == "A":
        return PadShortcut(stride, n_out - n_in)
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))


class ResNet(nn.Module):
    """A network of `depth` weight layers: (B, 3, S, S) images to (B, num_classes) logits.

    With `skip` 1 and projections (shortcut B), its parameters have the names and shapes of those of
    `torchvision.models.resnet18/34`; without, the projections are missing.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        skip: float = 1.0,
        shortcut: Shortcut = "B",
        stem: Stem = "photo",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"Expected `depth` in {sorted(BLOCKS_PER_STAGE)}, but got {depth}.")
        _check_choice("shortcut", shortcut, Shortcut)
        _check_choice("stem", stem, Stem)
        if num_classes < 2:
            raise ValueError(f"Expected `num_classes` to be at least 2, but got {num_classes}.")
        photo = stem == "photo"
        channels = _channels(width)
        n_first = channels[0]
        self.conv1 = nn.Conv2d(
            3,
            n_first,
            kernel_size=7 if photo else 3,
            stride=2 if photo else 1,
            padding=3 if photo else 1,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(n_first)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if photo else nn.Identity()
        n_in = n_first
        stages: list[nn.Module] = []
        for n_blocks, n_out in zip(BLOCKS_PER_STAGE[depth], channels, strict=True):
            blocks = []
            for index in range(n_blocks):
                stride = 2 if index == 0 and stages else 1
                blocks.append(BasicBlock(n_in, n_out, stride, skip=skip, shortcut=shortcut))
                n_in = n_out
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n_in, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _channels(width: float) -> tuple[int, ...]:
    """Of each stage; `width` multiplies them all."""
    channels = tuple(round(width * n) for n in CHANNELS_PER_STAGE)
    if channels[0] < 1:
        raise ValueError(f"Expected `width` to leave at least one channel, but got {width}.")
    return channels


def initialise(model: nn.Module, init: Init = "kaiming", seed: int | None = None) -> None:
    """Draw the weights of every convolution and linear layer anew, in place.

    `kaiming` is torchvision's: convolutions normal with variance 2 / fan_out, the rest as PyTorch
    does it (He et al. 2015, https://arxiv.org/abs/1502.01852). `torch-default` is PyTorch's own:
    uniform with variance 1 / (3 fan_in).

    With a `seed`, each layer draws from a stream of its own, made from the seed and the layer's
    name. Two networks of one seed then start from equal values wherever a layer of the same name
    and shape stands in both. Without one, PyTorch's global generator is used.
    """
    _check_choice("init", init, Init)
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        generator = None if seed is None else _stream(seed, name)
        if init == "kaiming" and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        else:
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
        if module.bias is not None:
            bound = nn.init._calculate_correct_fan(module.weight, "fan_in") ** -0.5
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def _stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _build(depth: int, skip: float) -> Callable[..., ResNet]:
    def build(
        num_classes: int,
        *,
        shortcut: Shortcut = "B",
        stem: Stem = "photo",
        width: float = 1.0,
        init: Init = "kaiming",
        seed: int | None = None,
    ) -> ResNet:
        model = ResNet(depth, num_classes, skip=skip, shortcut=shortcut, stem=stem, width=width)
        initialise(model, init, seed)
        return model

    kind = "residual" if skip else "plain"
    build.__name__ = build.__qualname__ = f"{'resnet' if skip else 'plain'}_{depth}"
    build.__doc__ = f"The {kind} network of {depth} weight layers; see `ResNet` and `initialise`."
    return renamed_arguments(n_classes="num_classes")(build)


plain_18, resnet_18 = _build(18, skip=0.0), _build(18, skip=1.0)
plain_34, resnet_34 = _build(34, skip=0.0), _build(34, skip=1.0)

NETWORKS: dict[str, Callable[..., ResNet]] = {
    build.__name__: build for build in (plain_18, resnet_18, plain_34, resnet_34)
}


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"Expected `{name}` to be one of {get_args(choices)}, but got {value!r}.")
