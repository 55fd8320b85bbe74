"""The Recorder on every classifier of torchvision, against autograd: most of it is slow."""

import pytest
import torch
import torchvision.models as tv
from byhand import ByHand, output_row, value
from loops import recorded, sgd
from torch import Tensor, nn

OUTPUT_NORMS = ("output_rms", "output_grad_norm")
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
    """Of all parameters and outputs, also of an output that a ReLU overwrites."""
    model, size = build(name)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    hand = ByHand(model)
    hand.backward(loss_of, model, size)
    want = {
        site: {"grad_norm": float("nan") if p.grad is None else p.grad.double().norm().item()}
        for site, p in model.named_parameters()
    }
    for site, outputs in hand._outputs[0].items():
        row = output_row(outputs)
        want[site] = {measure: row.get(measure, float("nan")) for measure in OUTPUT_NORMS}
    for key, buffer in model.named_buffers():
        buffer.data.copy_(buffers[key])
    trace = recorded(model, lambda _: loss_of(model, size), sgd(model, 0.0))
    for site, row in want.items():
        for measure, norm in row.items():
            got = value(trace, measure, site)
            assert got == pytest.approx(norm, rel=1e-5, abs=1e-12, nan_ok=True), (measure, site)
    assert not any(module._forward_hooks for module in model.modules())
