"""The Recorder on every classifier of torchvision, against autograd: most of it is slow."""

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from gradflow import Recorder

NAMES = tv.list_models(module=tv)

# The small ones that differ most: every output overwritten by a ReLU, several heads, squeeze and
# excitation with in-place activations, channels that are split and shuffled.
FAST = ("googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")

# The largest has 640 million parameters, of which a slow machine needs minutes for one step.
SLOW = (pytest.mark.slow, pytest.mark.timeout(1200))

# Networks that need a larger picture than 32 px: for their pooling, or for windows that must fit.
SIZES = {
    "alexnet": 64,
    "googlenet": 64,
    "inception_v3": 75,
    "maxvit_t": 224,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
}


def build(name: str) -> tuple[nn.Module, int]:
    settings: dict[str, object] = {"num_classes": 5}
    size = SIZES.get(name, 32)
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": name == "googlenet", "init_weights": False}
    if name.startswith("vit_"):
        size = 28 if name.endswith("14") else 32
        settings["image_size"] = size
    torch.manual_seed(0)
    return tv.get_model(name, weights=None, **settings).train(), size


def loss_of(model: nn.Module, size: int) -> Tensor:
    """The same every time, dropout and stochastic depth included."""
    torch.manual_seed(1)
    output = model(torch.randn(2, 3, size, size))
    logits = output if isinstance(output, Tensor) else sum(output[1:], start=output[0])
    return nn.functional.cross_entropy(logits, torch.tensor([0, 3]))


def test_the_list_is_all_of_them() -> None:
    assert len(NAMES) >= 80
    assert all(tv.get_model_builder(name).__module__.count(".") == 2 for name in NAMES)


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if one in FAST else SLOW) for one in NAMES],
)
def test_every_norm_equals_plain_autograd(name: str) -> None:
    """All parameters, and the outputs of all convolutions and linear layers."""
    model, size = build(name)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    seen: dict[str, tuple[Tensor, int, float]] = {}
    calls: dict[str, int] = {}

    def keep(layer: str, output: Tensor) -> None:
        call = calls[layer] = calls.get(layer, -1) + 1
        rms = output.detach().double().square().mean().sqrt().item()
        seen[f"{layer}#{call}" if call else layer] = (output, output._version, rms)

    handles = [
        module.register_forward_hook(lambda _m, _i, out, layer=layer: keep(layer, out))
        for layer, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    loss = loss_of(model, size)
    for handle in handles:
        handle.remove()
    # Of an output that a ReLU has overwritten, autograd only knows what became of it.
    captured = {site: out for site, (out, v, _) in seen.items() if out._version == v}
    parameters = dict(model.named_parameters())
    wanted = [*parameters.values(), *captured.values()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    norms = {
        site: float("nan") if grad is None else grad.double().norm().item()
        for site, grad in zip([*parameters, *captured], grads, strict=True)
    }
    for key, buffer in model.named_buffers():
        buffer.data.copy_(buffers[key])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer) as recorder:
        loss_of(model, size).backward()
        optimizer.step()
    trace = recorder.trace
    column = {site: index for index, site in enumerate(trace.sites)}
    for site, norm in norms.items():
        measure = "grad_norm" if site in parameters else "output_grad_norm"
        got = trace.values[measure][0, column[site]]
        assert got == pytest.approx(norm, rel=1e-5, abs=1e-12, nan_ok=True), site
    for site, (_, _, rms) in seen.items():
        got = trace.values["output_rms"][0, column[site]]
        assert got == pytest.approx(rms, rel=1e-5), site
    assert not any(module._forward_hooks for module in model.modules())
