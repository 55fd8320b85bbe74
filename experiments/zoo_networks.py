"""The networks of experiments/zoo.py, about 190, from those that train to those that cannot.

Each is built from torch's generator, so that a seed gives its weights, and each has 4 classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gradflow.nets import plain_34, resnet_34

N_CLASSES = 4
FEATURES = 64  # of a vector
WIDTH = 64

Signal = Literal["vector", "image", "sequence", "first step"]


@dataclass(frozen=True)
class Network:
    """One network of the zoo, and what it reads."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of one input
    signal: Signal = "vector"  # where the class shows: "first step" of a sequence, else all of it


# -- initialisations ---------------------------------------------------------------------------


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


INITS: dict[str, Callable[[Tensor], object]] = {
    "he": _kaiming,
    "xavier": nn.init.xavier_normal_,
    "orthogonal": nn.init.orthogonal_,
    "orthogonal-1.5": partial(nn.init.orthogonal_, gain=1.5),
    "normal-.01": partial(nn.init.normal_, std=0.01),
    "normal-.05": partial(nn.init.normal_, std=0.05),
    "normal-.5": partial(nn.init.normal_, std=0.5),
}


def initialised(model: nn.Module, init: str) -> nn.Module:
    """Weights drawn anew and biases at 0; "default" leaves PyTorch's."""
    if init != "default":
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                INITS[init](module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return model


# -- stacks ------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "selu": nn.SELU,
}  # fmt: skip
NORMS_1D: dict[str, Callable[[int], nn.Module]] = {"bn": nn.BatchNorm1d, "ln": nn.LayerNorm}


def mlp(
    depth: int, activation: str = "relu", init: str = "default", norm: str = ""
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth - 1):
        layers.append(nn.Linear(WIDTH if i else FEATURES, WIDTH))
        if norm:
            layers.append(NORMS_1D[norm](WIDTH))
        layers.append(ACTIVATIONS[activation]())
    model = nn.Sequential(*layers, nn.Linear(WIDTH, N_CLASSES))
    initialised(model, init)
    return model


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def with_scaled_layer(depth: int, factor: float, norm: str = "") -> nn.Module:
    """Layer 3 of a He-ReLU stack with its weights times `factor`."""
    model = mlp(depth, "relu", "he", norm)
    with torch.no_grad():
        linears(model)[2].weight *= factor
    return model


def with_dead_layer(depth: int, share: float = 1.0, norm: str = "") -> nn.Module:
    """A share of the units in the middle gives 0 for every input."""
    model = mlp(depth, "relu", "he", norm)
    layers: list[nn.Linear | nn.BatchNorm1d] = (
        [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)] if norm else linears(model)
    )
    bias = layers[depth // 2].bias
    with torch.no_grad():
        bias[: round(share * len(bias))] = -100
    return model


def with_zero_layer(depth: int) -> nn.Module:
    model = mlp(depth, "relu", "he")
    nn.init.zeros_(linears(model)[depth // 2].weight)
    return model


def with_bad_transitions(gain: float, activation: str = "") -> nn.Module:
    """Four stages of five orthogonal layers, and a gain at each of the three transitions."""
    layers: list[nn.Module] = []
    for i in range(20):
        linear = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.orthogonal_(linear.weight, gain if i in (5, 10, 15) else 1.0)
        layers.append(linear)
        if activation:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers, nn.Linear(WIDTH, N_CLASSES))


def with_bottleneck(n_units: int, activation: str) -> nn.Module:
    kind = ACTIVATIONS[activation]
    sizes = [FEATURES, WIDTH, WIDTH, n_units, WIDTH, WIDTH]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), kind()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, N_CLASSES))


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.branch(x)
        return output


def residual_mlp(n_blocks: int, norm: str = "", *, zero: bool = False, dead: bool = False):  # type: ignore[no-untyped-def]
    blocks: list[nn.Module] = []
    for i in range(n_blocks):
        first, last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        _kaiming(first.weight)
        _kaiming(last.weight)
        if zero:
            nn.init.zeros_(last.weight)
        if dead and i == n_blocks // 2:
            nn.init.constant_(first.bias, -100)
        normed = [NORMS_1D[norm](WIDTH)] if norm else []
        blocks.append(Residual(nn.Sequential(*normed, first, nn.ReLU(), last)))
    normed = [NORMS_1D[norm](WIDTH)] if norm else []
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), *blocks, *normed, nn.Linear(WIDTH, N_CLASSES))


def cnn(depth: int, activation: str = "relu", init: str = "default", norm: str = "") -> nn.Module:
    """A plain stack on 12×12 images, with one pooling in the middle and a mean at the end."""
    layers: list[nn.Module] = []
    for i in range(depth - 1):
        layers.append(nn.Conv2d(16 if i else 3, 16, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(16))
        layers.append(ACTIVATIONS[activation]())
        if i == depth // 2:
            layers.append(nn.MaxPool2d(2))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, N_CLASSES))
    model = nn.Sequential(*layers, pooled)
    initialised(model, init)
    return model


class Own(nn.Module):
    """A layer of one's own: tanh(x W)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH) * std)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w)


def own_layers(depth: int, std: float) -> nn.Module:
    ends = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, N_CLASSES)
    return nn.Sequential(ends[0], *[Own(std) for _ in range(depth)], ends[1])


def weight_normed(depth: int) -> nn.Module:
    layers = [nn.Sequential(weight_norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh()) for _ in range(depth)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, N_CLASSES))


# -- sequences ---------------------------------------------------------------------------------

TOKENS = 12
CHANNELS = 32


class Block(nn.Module):
    """A transformer block: attention and a feed-forward part, normed before, after or not."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = norm
        self.attention = nn.MultiheadAttention(CHANNELS, 4, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(CHANNELS, 4 * CHANNELS), nn.GELU(), nn.Linear(4 * CHANNELS, CHANNELS)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)])

    def forward(self, x: Tensor) -> Tensor:
        for part, norm in zip((self._attend, self.feed), self.norms, strict=True):
            if self.norm == "pre":
                x = x + part(norm(x))
            elif self.norm == "post":
                x = norm(x + part(x))
            else:
                x = x + part(x)
        return x

    def _attend(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return attended


class MeanOf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def transformer(depth: int, norm: str, gain: float = 1.0, *, skips: bool = True) -> nn.Module:
    blocks = [Block(norm) for _ in range(depth)] if skips else [
        nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.LayerNorm(CHANNELS), nn.GELU())
        for _ in range(depth)
    ]  # fmt: skip
    last = [nn.LayerNorm(CHANNELS)] if norm == "pre" else []
    model = nn.Sequential(
        nn.Linear(CHANNELS, CHANNELS), *blocks, *last, MeanOf(), nn.Linear(CHANNELS, N_CLASSES)
    )
    if gain != 1:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter *= gain
    return model


class Loop(nn.Module):
    """A cell that is called at every time step; the class shows at the first."""

    def __init__(self, cell: nn.RNNCellBase, prepare: str = "") -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(WIDTH, N_CLASSES)
        if prepare == "orthogonal":
            nn.init.orthogonal_(cell.weight_hh)
        elif prepare == "identity":
            nn.init.eye_(cell.weight_hh)
        elif prepare == "remember":  # a forget gate that is open, Jozefowicz et al. 2015
            nn.init.constant_(cell.bias_hh[WIDTH : 2 * WIDTH], 3.0)
        elif prepare == "small":
            nn.init.normal_(cell.weight_hh, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        hidden = state[0] if isinstance(state, tuple) else state
        logits: Tensor = self.head(hidden)
        return logits


class LastStep(nn.Module):
    """nn.LSTM or nn.GRU and a classifier of its last output."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(WIDTH, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def _loop(kind: type[nn.RNNCellBase], prepare: str = "", **options: object) -> nn.Module:
    return Loop(kind(CHANNELS, WIDTH, **options), prepare)  # type: ignore[arg-type]


def _rnn(kind: type[nn.RNNBase], n_layers: int) -> nn.Module:
    return LastStep(kind(CHANNELS, WIDTH, n_layers, batch_first=True))


# -- torchvision -------------------------------------------------------------------------------

TORCHVISION = (
    "squeezenet1_0", "squeezenet1_1", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "mnasnet0_5",
    "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18",
    "resnet34", "regnet_x_400mf", "regnet_y_400mf", "efficientnet_b0", "googlenet", "resnet50",
    "resnext50_32x4d", "densenet121", "densenet169", "convnext_tiny", "swin_t", "swin_v2_t",
    "inception_v3", "wide_resnet50_2", "resnet101", "efficientnet_v2_s", "maxvit", "alexnet",
    "vit_b_16", "resnet152", "vgg11", "vgg11_bn", "vgg16", "vgg16_bn",
)  # fmt: skip
# Networks that need a larger picture than 32 px, for their pooling.
PIXELS = {"alexnet": 64, "googlenet": 64, "inception_v3": 75, "maxvit": 64, "squeezenet1_0": 64,
          "squeezenet1_1": 64}  # fmt: skip


def torchvision_network(name: str) -> nn.Module:
    options: dict[str, object] = {"num_classes": N_CLASSES}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name == "vit_b_16":
        options["image_size"] = 32
    if name == "maxvit":  # MaxViT-T needs 224 px; this is the same with windows of 2 instead of 7
        return tv.MaxVit((64, 64), 64, 2, [64, 128, 256, 512], [2, 2, 5, 2], 32, 0.2, **options)  # type: ignore[arg-type]
    model: nn.Module = tv.get_model(name, weights=None, **options)
    if name.startswith("vgg") or name == "alexnet":
        _make_head_narrow(model)
    return model


def _make_head_narrow(model: nn.Module) -> None:
    """512 units where VGG and AlexNet have 4096, nine tenths of their weights; drawn as theirs."""
    head = model.classifier
    assert isinstance(head, nn.Sequential)
    for i, layer in enumerate(head):
        if isinstance(layer, nn.Linear):
            n_in = layer.in_features if layer.in_features != 4096 else 512
            n_out = 512 if layer.out_features == 4096 else layer.out_features
            head[i] = nn.Linear(n_in, n_out)
            if isinstance(model, tv.VGG):
                nn.init.normal_(head[i].weight, 0, 0.01)  # type: ignore[arg-type]
                nn.init.zeros_(head[i].bias)  # type: ignore[arg-type]


# -- the list ----------------------------------------------------------------------------------


def _stacks() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    scaled = {"relu": "he", "tanh": "xavier", "sigmoid": "xavier"}
    for depth in (4, 12, 30):
        for activation, init in scaled.items():
            for how, norm in (("default", ""), (init, ""), ("default", "bn"), ("default", "ln")):
                name = f"mlp-{depth} {activation} {how} {norm}".strip()
                yield name, partial(mlp, depth, activation, how, norm)
    for depth, activation, init, norm in (
        (60, "tanh", "orthogonal", ""), (60, "relu", "he", ""), (60, "relu", "default", "bn"),
        (100, "relu", "default", "bn"), (60, "relu", "default", "ln"), (20, "selu", "xavier", ""),
        (12, "gelu", "default", ""), (30, "gelu", "he", ""), (20, "gelu", "default", ""),
        (4, "relu", "normal-.01", ""), (8, "relu", "normal-.01", ""), (8, "relu", "normal-.05", ""),
        (20, "relu", "normal-.05", ""), (8, "relu", "normal-.01", "bn"),
        (4, "relu", "normal-.5", ""), (12, "relu", "normal-.5", ""), (30, "relu", "normal-.5", ""),
        (12, "tanh", "normal-.5", ""), (30, "tanh", "normal-.5", ""),
        (12, "relu", "normal-.5", "ln"),
        (20, "relu", "orthogonal-1.5", ""), (60, "relu", "orthogonal-1.5", ""),
        (20, "tanh", "orthogonal-1.5", ""), (8, "sigmoid", "default", ""),
        (8, "sigmoid", "xavier", ""), (20, "relu", "default", ""), (8, "relu", "default", ""),
        (6, "sigmoid", "normal-.5", ""), (20, "tanh", "default", ""),
    ):  # fmt: skip
        name = f"mlp-{depth} {activation} {init} {norm}".strip()
        yield name, partial(mlp, depth, activation, init, norm)


def _with_one_fault() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for factor in (1e-1, 1e-2, 1e-3, 1e-5, 1e2, 1e4):
        yield f"mlp-12 layer 3 times {factor:g}", partial(with_scaled_layer, 12, factor)
    yield "mlp-12 bn layer 3 times 1e-3", partial(with_scaled_layer, 12, 1e-3, "bn")
    for depth in (6, 12, 20):
        yield f"mlp-{depth} dead layer", partial(with_dead_layer, depth)
    yield "mlp-12 90 % of a layer dead", partial(with_dead_layer, 12, 0.9)
    yield "mlp-12 half of a layer dead", partial(with_dead_layer, 12, 0.5)
    yield "mlp-12 bn dead layer", partial(with_dead_layer, 12, 1.0, "bn")
    yield "mlp-12 zero layer", partial(with_zero_layer, 12)
    for gain in (1e-3, 1e-2, 1e-1, 0.3, 10.0):
        yield f"transitions of gain {gain:g}", partial(with_bad_transitions, gain)
    for gain in (1e-2, 1e-1):
        yield f"tanh, transitions of gain {gain:g}", partial(with_bad_transitions, gain, "tanh")
    for n_units in (1, 2, 8):
        for activation in ("relu", "tanh"):
            yield (
                f"bottleneck {n_units} {activation}",
                partial(with_bottleneck, n_units, activation),
            )


def _other_vectors() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for n_blocks in (6, 20, 50):
        for norm in ("", "bn", "ln"):
            yield f"residual-{n_blocks} {norm}".strip(), partial(residual_mlp, n_blocks, norm)
    yield "residual-20 zero", partial(residual_mlp, 20, zero=True)
    yield "residual-20 ln one dead branch", partial(residual_mlp, 20, "ln", dead=True)
    for std in (0.02, 0.125, 0.05):
        yield f"own layers-20 std {std}", partial(own_layers, 20, std)
    yield "weight_norm-10", partial(weight_normed, 10)
    yield "weight_norm-30", partial(weight_normed, 30)


def _images() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for depth in (5, 12, 24):
        for init, norm in (("default", ""), ("he", ""), ("default", "bn")):
            name = f"cnn-{depth} relu {init} {norm}".strip()
            yield name, partial(cnn, depth, "relu", init, norm)
    for depth, activation, init in (
        (5, "sigmoid", "default"), (12, "sigmoid", "xavier"), (12, "tanh", "xavier"),
        (24, "tanh", "orthogonal"), (8, "relu", "normal-.01"), (12, "relu", "normal-.5"),
    ):  # fmt: skip
        yield f"cnn-{depth} {activation} {init}", partial(cnn, depth, activation, init)


def _sequences() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for depth in (2, 8, 20):
        for norm in ("pre", "post", "none"):
            yield f"transformer-{depth} {norm}-norm", partial(transformer, depth, norm)
    yield "transformer-8 post-norm gain 3", partial(transformer, 8, "post", 3.0)
    yield "transformer-8 none-norm gain 3", partial(transformer, 8, "none", 3.0)
    yield "transformer-8 pre-norm gain 0.1", partial(transformer, 8, "pre", 0.1)
    yield "transformer-20 without skips", partial(transformer, 20, "post", skips=False)


def _loops() -> Iterator[tuple[str, Callable[[], nn.Module], int]]:
    for n_steps in (5, 20, 60):
        yield f"rnn loop-{n_steps}", partial(_loop, nn.RNNCell), n_steps
        yield f"lstm loop-{n_steps}", partial(_loop, nn.LSTMCell), n_steps
        yield f"gru loop-{n_steps}", partial(_loop, nn.GRUCell), n_steps
    relu = {"nonlinearity": "relu"}
    yield "rnn loop-60 orthogonal", partial(_loop, nn.RNNCell, "orthogonal"), 60
    yield "rnn loop-60 identity relu", partial(_loop, nn.RNNCell, "identity", **relu), 60
    yield "rnn loop-20 small", partial(_loop, nn.RNNCell, "small"), 20
    yield "lstm loop-60 remember", partial(_loop, nn.LSTMCell, "remember"), 60
    yield "nn.LSTM of 1 layer", partial(_rnn, nn.LSTM, 1), 10
    yield "nn.LSTM of 4 layers", partial(_rnn, nn.LSTM, 4), 10
    yield "nn.GRU of 8 layers", partial(_rnn, nn.GRU, 8), 10


def networks() -> list[Network]:
    """All of them, the cheap ones first."""
    pixels = (3, 12, 12)
    found = [
        Network(name, build, (FEATURES,))
        for group in (_stacks(), _with_one_fault(), _other_vectors())
        for name, build in group
    ]
    found += [Network(name, build, pixels, "image") for name, build in _images()]
    found += [Network(name, build, (TOKENS, CHANNELS), "sequence") for name, build in _sequences()]
    found += [
        Network(name, build, (n_steps, CHANNELS), "first step") for name, build, n_steps in _loops()
    ]
    for name in TORCHVISION:
        size = PIXELS.get(name, 32)
        found.append(Network(name, partial(torchvision_network, name), (3, size, size), "image"))
    small = (3, 16, 16)
    found += [
        Network("gradflow resnet_34", partial(resnet_34, N_CLASSES, stem="small"), small, "image"),
        Network("gradflow plain_34", partial(plain_34, N_CLASSES, stem="small"), small, "image"),
        Network("plain_34 without BatchNorm", partial(without_norm, "default"), small, "image"),
        Network("plain_34 without BatchNorm, He", partial(without_norm, "he"), small, "image"),
    ]
    return found


def without_norm(init: str) -> nn.Module:
    """A Plain-34 of a quarter of the width, each BatchNorm replaced by the identity."""
    model = plain_34(N_CLASSES, stem="small", width=0.25)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return initialised(model, init)
