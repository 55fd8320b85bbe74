"""Saliency: which pixels of one photograph speak for a class. The only module that uses Captum."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam, Saliency
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradflow.present import plots

# Grad-CAM's map is as fine as the layer it is taken at. 7 x 7 is what a ResNet's last stage has at
# 224 pixels; on smaller images that stage has 1 to 4 pixels a side, too few to point at anything.
SMALLEST_MAP = 7
MOST_MAPS = 10  # maps made where the caller names no number: what one picture can show


@dataclass(frozen=True, eq=False)
class Attribution:
    """The maps of one network for one photograph.

    A map has the unit of its method: "gradcam" is a logit times activation over activation and
    never negative, "gradient" is |∂logit/∂pixel| per unit of the normalised image.
    """

    method: str
    layer: str | None  # the layer that the map was taken at; None where it is taken at the input
    classes: tuple[str, ...]
    probabilities: np.ndarray  # (classes,)
    maps: np.ndarray  # (n_maps, S, S) float
    map_classes: tuple[int, ...]  # (n_maps,): the index of each map's class in `classes`

    def __post_init__(self) -> None:
        if self.probabilities.shape != (len(self.classes),):
            raise ValueError(
                f"Expected one probability for each of {len(self.classes)} classes, "
                f"but got an array of shape {self.probabilities.shape}."
            )
        if self.maps.ndim != 3 or len(self.maps) != len(self.map_classes):
            raise ValueError(
                f"Expected `maps` of shape ({len(self.map_classes)}, S, S), one for each class "
                f"shown, but got {self.maps.shape}."
            )


def attribute(
    model: nn.Module,
    image: Tensor,
    class_names: Sequence[str],
    *,
    method: str = "gradcam",
    n_classes: int | None = None,
) -> Attribution:
    """The class probabilities of `image` and one map for each class shown.

    `image` is (1, 3, S, S), normalised as in training, on the model's device. Up to ten classes
    are all shown in their own order, so that networks can be compared column by column;
    `n_classes`, or more than ten classes, shows the most probable ones, best first. The model is
    used in eval mode and comes back as it was: flags, gradients and hooks. Raises ValueError for
    an unknown method, an image of another shape, or names that do not fit the model's outputs.
    """
    if method not in METHODS:
        raise ValueError(f"Expected `method` to be one of {tuple(METHODS)}, but got {method!r}.")
    if image.ndim != 4 or len(image) != 1 or image.shape[2] != image.shape[3]:
        raise ValueError(
            f"Expected one square image of shape (1, 3, S, S), but got {tuple(image.shape)}."
        )
    if n_classes is not None and n_classes < 1:
        raise ValueError(f"Expected `n_classes` to be at least 1, but got {n_classes}.")
    # With frozen weights, the image must be what the gradient is taken for.
    image = image.detach().clone().requires_grad_()
    with inspecting(model), torch.enable_grad():
        probabilities = _probabilities(model, image, class_names)
        shown = _shown(probabilities, n_classes)
        layer, maps = METHODS[method](model, image, shown)
    return Attribution(
        method, layer, tuple(class_names), probabilities, maps.detach().cpu().numpy(), shown
    )


def gradcam(model: nn.Module, image: Tensor, classes: Sequence[int]) -> tuple[str, Tensor]:
    """ReLU(Σ_k α_k A_k), A being the maps of `gradcam_layer` and α_k the spatial mean of ∂y/∂A_k.

    y is the logit of the class. The ReLU comes before the bilinear enlargement to the size of the
    image, as in the paper. Shape (classes, S, S).

    Selvaraju et al. 2017, "Grad-CAM", https://arxiv.org/abs/1610.02391, equations 1 and 2
    """
    name, layer = gradcam_layer(model, image)
    maps = LayerGradCam(model, layer).attribute(
        _repeat(image, classes), target=list(classes), relu_attributions=True
    )
    size = tuple(image.shape[2:])
    maps = LayerAttribution.interpolate(maps, size, interpolate_mode="bilinear")
    return name, maps[:, 0]


def gradient(model: nn.Module, image: Tensor, classes: Sequence[int]) -> tuple[None, Tensor]:
    """max over the colours of |∂y/∂x|, y being the logit of the class. Shape (classes, S, S).

    Simonyan et al. 2014, "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034
    """
    grads = Saliency(model).attribute(_repeat(image, classes), target=list(classes), abs=True)
    return None, grads.amax(dim=1)


METHODS: dict[str, Callable[[nn.Module, Tensor, Sequence[int]], tuple[str | None, Tensor]]] = {
    method.__name__: method for method in (gradcam, gradient)
}


def gradcam_layer(model: nn.Module, image: Tensor) -> tuple[str, nn.Module]:
    """The name and module that Grad-CAM is taken at: the last block with a map of 7 x 7 or more.

    A block is a module made of others, no plain sequence, that returns feature maps (1, C, S, S),
    such as a residual block. Where no block has a map that large, the convolutions and ReLUs are
    searched; where no layer has, it is the last block (or layer) with the largest map. Modules
    that are called more than once are left out: their map would be that of the last call only.
    Raises ValueError for a network without feature maps.
    """
    sizes = _map_sizes(model, image)
    modules = {name: model.get_submodule(name) for name in sizes}
    blocks = [name for name in sizes if _is_block(modules[name])]
    layers = [name for name in sizes if isinstance(modules[name], nn.Conv2d | nn.ReLU)]
    for names in (blocks, layers):
        large = [name for name in names if sizes[name] >= SMALLEST_MAP]
        if large:
            return large[-1], modules[large[-1]]
    if not blocks and not layers:
        raise ValueError(
            "Expected a network with square feature maps (1, C, S, S), but got one without. "
            "Use the method `gradient`, which needs none."
        )
    last_first = reversed(blocks or layers)
    name = max(last_first, key=sizes.__getitem__)
    return name, modules[name]


@contextlib.contextmanager
def inspecting(model: nn.Module) -> Iterator[nn.Module]:
    """Hand out `model` in eval mode with frozen weights, then put everything back."""
    was_training = {module: module.training for module in model.modules()}
    required_grad = {weight: weight.requires_grad for weight in model.parameters()}
    try:
        yield model.eval().requires_grad_(False)
    finally:
        for module, flag in was_training.items():
            module.training = flag
        for weight, flag in required_grad.items():
            weight.requires_grad_(flag)


def saliency_figure(photo: np.ndarray, results: Mapping[str, Attribution], path: Path) -> Path:
    """Write one picture: a row of maps over `photo`, (S, S, 3) uint8, for each network."""
    axes = plots.saliency_grid(np.asarray(photo), results)
    return plots.save(plots.figure_of(axes[0][0]), path)


def _probabilities(model: nn.Module, image: Tensor, class_names: Sequence[str]) -> np.ndarray:
    logits = model(image.detach())
    if logits.shape != (1, len(class_names)):
        raise ValueError(
            f"Expected the model to return one logit for each of {len(class_names)} classes, "
            f"but got {tuple(logits.shape)}."
        )
    return np.asarray(logits.detach().double().softmax(dim=1)[0].cpu().numpy())


def _shown(probabilities: np.ndarray, n_classes: int | None) -> tuple[int, ...]:
    if n_classes is None and len(probabilities) <= MOST_MAPS:
        return tuple(range(len(probabilities)))
    best_first = np.argsort(-probabilities, kind="stable")
    return tuple(int(i) for i in best_first[: n_classes or MOST_MAPS])


def _repeat(image: Tensor, classes: Sequence[int]) -> Tensor:
    """One copy of the image per class: in eval mode the images of a batch do not see each other."""
    return image.detach().repeat(len(classes), 1, 1, 1).requires_grad_()


def _map_sizes(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Name -> side of its feature maps (1, C, S, S), of modules called once, as they finish."""
    calls: list[tuple[str, int | None]] = []
    hooks: list[RemovableHandle] = []

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: calls.append((name, _side(output)))

    try:
        for name, module in model.named_modules():
            hooks.append(module.register_forward_hook(keep(name)))
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    n_calls = Counter(name for name, _ in calls)
    return {name: side for name, side in calls if side is not None and n_calls[name] == 1}


def _side(output: object) -> int | None:
    """Of square maps only: channels-last ones, (1, S, S, C), are not read as maps."""
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2] != output.shape[3]:
        return None
    return int(output.shape[2])


def _is_block(module: nn.Module) -> bool:
    return type(module) is not nn.Sequential and any(True for _ in module.children())
