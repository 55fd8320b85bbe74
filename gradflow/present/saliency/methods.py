"""The methods: which pixels speak for a class. With `trust`, the only module that uses Captum."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from captum.attr import (
    GuidedBackprop,
    IntegratedGradients,
    LayerAttribution,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

# Images that go through the network at once: 16 of 224 px, which keep a ResNet-34 with all its
# activations below 2 GB, and more of smaller ones.
PIXELS_PER_BATCH = 16 * 224**2
MOST_PER_BATCH = 128

NOISE_SAMPLES = 25  # the paper's figures hardly change above (Smilkov et al. 2017, section 3.2)
# Noise of 15 % of the range of a photograph: within the 10 to 20 % at which the paper finds maps
# sharpest. From black to white a normalised photograph spans 1 / 0.226, ImageNet's mean deviation.
NOISE_DEVIATION = 0.15 / 0.226
NOISE_SEED = 0

# Gauss-Legendre points on the way from the baseline; 20 to 300 are usual, says the paper's section
# 5, and that the sum should come within 5 % of what it has to explain.
PATH_STEPS = 50
LARGEST_DELTA = 0.05

OCCLUSION_WINDOW = 1 / 6  # of the image's side: 37 px at 224, about the size of a ladle
OCCLUSION_OVERLAP = 2  # windows over each pixel, either way
N_WINDOWS = 130  # of an image of 224 px


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """What a method found: `values` (images, classes, C, S, S), C being 3 colours or 1 for all.

    `layer` is where it was found, None at the input. `deltas` and `changes`, (images, classes), are
    of integrated gradients: Σ values − change, and the change y(x) − y(baseline) in logits.
    """

    values: Tensor
    layer: str | None = None
    deltas: Tensor | None = None
    changes: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """One way to ask which pixels speak for a class.

    `compute(model, images, classes)` takes normalised images (B, 3, S, S) and the classes (B, K) to
    explain in each; the model is in eval mode with frozen weights. `shown` makes one map of the
    colours. `is_local` says that a value is a slope, not a share of the logit (see `trust`).
    `passes` is how often about an image goes through the network for one class.
    """

    name: str
    compute: Callable[[nn.Module, Tensor, Tensor], ClassMaps]
    shown: Callable[[Tensor], Tensor]  # (..., C, S, S) -> (..., S, S)
    is_local: bool
    passes: int = 1
    warning: str | None = None


def gradcam(model: nn.Module, images: Tensor, classes: Tensor) -> ClassMaps:
    """ReLU(Σ_k α_k A_k), A being the maps of `gradcam_layer` and α_k the spatial mean of ∂y/∂A_k.

    y is the logit of the class. The ReLU comes before the bilinear enlargement to the size of the
    image, as in the paper. One pass through the network serves all classes, where Captum's
    LayerGradCam takes one for each: of ten classes of a ResNet-34 at 96 px that is half of its
    arithmetic (7.4 forward passes' worth, not 15.4). The tests hold the two equal.

    Selvaraju et al. 2017, "Grad-CAM", https://arxiv.org/abs/1610.02391, equations 1 and 2
    """
    name, layer = gradcam_layer(model, images[:1])
    n_at_once = per_batch(images)
    parts = zip(in_batches(images, n_at_once), in_batches(classes, n_at_once), strict=True)
    small = torch.cat([_gradcam(model, layer, some, of) for some, of in parts])
    size = tuple(images.shape[2:])
    large = LayerAttribution.interpolate(small, size, interpolate_mode="bilinear")
    return ClassMaps(large.unsqueeze(2), layer=name)


def _gradcam(model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """(images, classes, side of the layer's maps, the same)."""
    logits, activations = _pass_from(model, layer, images)
    maps = []
    for targets in classes.T:
        chosen = logits.gather(1, targets.unsqueeze(1)).sum()  # images do not see each other
        (grads,) = torch.autograd.grad(
            chosen, activations, retain_graph=True, materialize_grads=True
        )
        weights = grads.mean(dim=(2, 3), keepdim=True)
        maps.append(functional.relu((weights * activations.detach()).sum(dim=1)))
    return torch.stack(maps, dim=1)


def _pass_from(model: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and the activations of `layer`, where their graph begins."""
    kept: list[Tensor] = []

    def begin(module: nn.Module, args: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # what follows may change it in place

    hook = layer.register_forward_hook(begin)
    try:
        return model(images.detach()), kept[0]
    finally:
        hook.remove()


def gradient(model: nn.Module, images: Tensor, classes: Tensor) -> ClassMaps:
    """∂y/∂x, y being the logit of the class; shown is the largest |∂y/∂x| of the colours.

    Simonyan et al. 2014, "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034
    """
    saliency = Saliency(model)
    return _pair_by_pair(
        lambda x, targets: saliency.attribute(x, target=targets, abs=False), images, classes
    )


def smoothgrad(model: nn.Module, images: Tensor, classes: Tensor) -> ClassMaps:
    """The mean of ∂y/∂x over 25 noisy copies of the image, with the same noise for each image.

    The noise is drawn from a seed of its own: a map does not depend on what else is in the batch,
    and the global random state stays as it is.

    Smilkov et al. 2017, "SmoothGrad", https://arxiv.org/abs/1706.03825
    """
    tunnel = NoiseTunnel(Saliency(model))
    found = []
    for image, targets in zip(images, classes, strict=True):
        x = image.detach().repeat(len(targets), 1, 1, 1).requires_grad_()
        with seeded(NOISE_SEED, image.device):
            found.append(
                tunnel.attribute(
                    x,
                    nt_type="smoothgrad",
                    nt_samples=NOISE_SAMPLES,
                    nt_samples_batch_size=max(1, per_batch(images) // len(targets)),
                    stdevs=NOISE_DEVIATION,
                    target=targets,
                    abs=False,
                ).detach()
            )
    return ClassMaps(torch.stack(found))


def integrated_gradients(model: nn.Module, images: Tensor, classes: Tensor) -> ClassMaps:
    """x · ∫₀¹ ∂y/∂x(αx) dα: what each value adds to the logit, from the mean image (0) to x.

    The baseline is zero after normalisation: the mean colour of ImageNet everywhere. By theory the
    values add up to y(x) − y(0); `deltas` say by how much the sum over 50 points misses it.

    Sundararajan et al. 2017, "Axiomatic Attribution", https://arxiv.org/abs/1703.01365
    """
    path = IntegratedGradients(model)
    n_at_once = per_batch(images)
    values, deltas, changes = [], [], []
    for x, targets in _pairs(images, classes, n_at_once):
        found, delta = path.attribute(
            x,
            baselines=0,
            target=targets,
            n_steps=PATH_STEPS,
            internal_batch_size=max(n_at_once, len(x)),
            return_convergence_delta=True,
        )
        values.append(found.detach())
        deltas.append(delta.detach())
        with torch.no_grad():
            change = model(x) - model(torch.zeros_like(x[:1]))
            changes.append(change.gather(1, targets.unsqueeze(1))[:, 0])
    shape = (*classes.shape, *images.shape[1:])
    return ClassMaps(
        torch.cat(values).reshape(shape),
        deltas=torch.cat(deltas).reshape(classes.shape),
        changes=torch.cat(changes).reshape(classes.shape),
    )


def occlusion(model: nn.Module, images: Tensor, classes: Tensor) -> ClassMaps:
    """By how much the logit falls when a grey window covers the pixel, the mean over windows.

    The window has a sixth of the image's side and moves by half of its own; grey is the mean
    colour. Zeiler & Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2
    """
    method = Occlusion(model)
    side = max(1, round(images.shape[2] * OCCLUSION_WINDOW))
    step = max(1, side // OCCLUSION_OVERLAP)

    def cover(x: Tensor, targets: Tensor) -> Tensor:
        drops: Tensor = method.attribute(
            x.detach(),
            sliding_window_shapes=(3, side, side),
            strides=(3, step, step),
            baselines=0,
            target=targets,
            perturbations_per_eval=max(1, per_batch(images) // len(x)),
        )
        return drops[:, :1]  # the window covers all colours: one value for the three

    return _pair_by_pair(cover, images, classes)


def guided_backprop(model: nn.Module, images: Tensor, classes: Tensor) -> ClassMaps:
    """∂y/∂x with every negative gradient set to zero on its way back through a ReLU.

    Springenberg et al. 2015, "Striving for Simplicity", https://arxiv.org/abs/1412.6806. Raises
    ValueError for a network without ReLU modules.
    """
    if not any(isinstance(module, nn.ReLU) for module in model.modules()):
        raise ValueError(
            "Expected a network with nn.ReLU modules, on which guided backpropagation acts, but "
            "got one without. Use another method."
        )
    method = GuidedBackprop(model)

    def guided(x: Tensor, targets: Tensor) -> Tensor:
        with warnings.catch_warnings():  # it says that it sets hooks, and it removes them
            warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
            found: Tensor = method.attribute(x, target=targets)
        return found

    return _pair_by_pair(guided, images, classes)


def per_batch(images: Tensor) -> int:
    """How many images of this size go through the network at once."""
    return max(1, min(MOST_PER_BATCH, PIXELS_PER_BATCH // images.shape[2] ** 2))


def in_batches(values: Tensor, n_at_once: int) -> Iterator[Tensor]:
    """The rows of `values`, so many at a time."""
    for start in range(0, len(values), n_at_once):
        yield values[start : start + n_at_once]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` inside; the global random state comes back as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _pair_by_pair(
    attribute: Callable[[Tensor, Tensor], Tensor], images: Tensor, classes: Tensor
) -> ClassMaps:
    found = [attribute(x, of).detach() for x, of in _pairs(images, classes, per_batch(images))]
    flat = torch.cat(found)
    return ClassMaps(flat.reshape(*classes.shape, *flat.shape[1:]))


def _pairs(images: Tensor, classes: Tensor, n_at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image with every class to explain in it, some pairs at a time."""
    n_classes = classes.shape[1]
    for chosen in in_batches(torch.arange(classes.numel(), device=images.device), n_at_once):
        x = images.detach()[chosen // n_classes].requires_grad_()
        yield x, classes.flatten()[chosen]


def _as_it_is(values: Tensor) -> Tensor:
    return values[..., 0, :, :]


def _largest_of_colours(values: Tensor) -> Tensor:
    return values.abs().amax(dim=-3)


def _sum_of_colours(values: Tensor) -> Tensor:
    return values.sum(dim=-3)


METHODS = {
    method.name: method
    for method in (
        Method("gradcam", gradcam, _as_it_is, False),
        Method("gradient", gradient, _largest_of_colours, True),
        Method("smoothgrad", smoothgrad, _largest_of_colours, True, NOISE_SAMPLES),
        Method("integrated-gradients", integrated_gradients, _sum_of_colours, False, PATH_STEPS),
        Method("occlusion", occlusion, _as_it_is, False, N_WINDOWS),
        Method(
            "guided-backprop",
            guided_backprop,
            _largest_of_colours,
            True,
            warning="guided backpropagation draws edges, whatever the network has learned: it "
            "fails randomisation checks (Adebayo et al. 2018)",
        ),
    )
}


# Grad-CAM's map is as fine as the layer it is taken at. 7 x 7 is what a ResNet's last stage has at
# 224 pixels; on smaller images that stage has 1 to 4 pixels a side, too few to point at anything.
SMALLEST_MAP = 7


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
    """Only square maps count: channels-last ones, (1, S, S, C), are not read as maps."""
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2] != output.shape[3]:
        return None
    return int(output.shape[2])


def _is_block(module: nn.Module) -> bool:
    return type(module) is not nn.Sequential and any(True for _ in module.children())
