"""The Recorder on one network of every torchvision classification family, against autograd."""

from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from gradflow import Recorder

FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (lambda: tv.alexnet(num_classes=5), 64),
    "convnext": (lambda: tv.convnext_tiny(num_classes=5), 32),
    "densenet": (lambda: tv.densenet121(num_classes=5), 32),
    "efficientnet": (lambda: tv.efficientnet_b0(num_classes=5), 32),
    "googlenet": (lambda: tv.googlenet(num_classes=5, init_weights=False), 64),
    "inception": (lambda: tv.inception_v3(num_classes=5, aux_logits=False, init_weights=False), 75),
    "maxvit": (lambda: tv.maxvit_t(num_classes=5), 224),
    "mnasnet": (lambda: tv.mnasnet0_5(num_classes=5), 32),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=5), 32),
    "mobilenet_v3": (lambda: tv.mobilenet_v3_small(num_classes=5), 32),
    "regnet": (lambda: tv.regnet_y_400mf(num_classes=5), 32),
    "resnet": (lambda: tv.resnet18(num_classes=5), 32),
    "shufflenet": (lambda: tv.shufflenet_v2_x0_5(num_classes=5), 32),
    "squeezenet": (lambda: tv.squeezenet1_1(num_classes=5), 64),
    "swin": (lambda: tv.swin_t(num_classes=5), 32),
    "swin_v2": (lambda: tv.swin_v2_t(num_classes=5), 32),
    "vgg": (lambda: tv.vgg11(num_classes=5), 32),
    "vit": (lambda: tv.vit_b_32(num_classes=5, image_size=32), 32),
}


def loss_of(model: nn.Module, size: int) -> Tensor:
    """One forward pass that is the same every time, dropout and stochastic depth included."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, size, size)
    output = model(images)
    logits = output if isinstance(output, Tensor) else sum(output[1:], start=output[0])
    return nn.functional.cross_entropy(logits, torch.tensor([0, 3]))


def some_layers(model: nn.Module) -> dict[str, nn.Module]:
    """A dozen layers, from input to output."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    names = list(layers)
    return {name: layers[name] for name in names[:: max(1, len(names) // 12)]}


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_plain_autograd(family: str) -> None:
    build, size = FAMILIES[family]
    torch.manual_seed(0)
    model = build().train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs: dict[str, tuple[Tensor, int]] = {}
    handles = [
        layer.register_forward_hook(
            lambda _m, _i, out, name=name: outputs.update({name: (out, out._version)})
        )
        for name, layer in some_layers(model).items()
    ]
    loss = loss_of(model, size)
    # Of an output that a ReLU has overwritten, autograd only knows what became of it.
    captured = {name: out for name, (out, v) in outputs.items() if out._version == v}
    parameters = dict(model.named_parameters())
    wanted = [*parameters.values(), *captured.values()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=False)
    norms = {
        name: None if grad is None else grad.double().norm().item()
        for name, grad in zip([*parameters, *captured], grads, strict=True)
    }
    for handle in handles:
        handle.remove()
    for name, buffer in model.named_buffers():
        buffer.data.copy_(buffers[name])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer) as recorder:
        loss_of(model, size).backward()
        optimizer.step()
    trace = recorder.trace
    row = {
        **dict(zip(trace.sites, trace.values["output_grad_norm"][0], strict=True)),
        **{name: trace.values["grad_norm"][0, trace.sites.index(name)] for name in parameters},
    }
    assert captured or family == "squeezenet"  # where a ReLU overwrites every output
    for name, norm in norms.items():
        if norm is None:
            assert row[name] != row[name], f"{name} has no gradient, and must not have a norm"
        else:
            assert row[name] == pytest.approx(norm, rel=1e-5, abs=1e-12), name
    assert not any(module._forward_hooks for module in model.modules())
