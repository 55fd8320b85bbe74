"""What tests of the records share: one seed, who takes the sums, and a count of what is read."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gradflow.record import kernel, outputs


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["kernel", "eager"], scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """What takes the sums: the compiled kernel, or PyTorch."""
    if request.param == "kernel":
        if kernel.library() is None:
            pytest.skip("no C++ compiler on this machine, or GRADFLOW_KERNEL=0")
        yield "kernel"
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "library", lambda: None)
        yield "eager"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each output that was read, whether a ReLU was read with it."""
    found = []
    real = outputs.output_sums

    def counted(x: Tensor, channel_dim: int, *, relu: bool) -> tuple[Tensor, Tensor]:
        found.append(relu)
        return real(x, channel_dim, relu=relu)

    monkeypatch.setattr(outputs, "output_sums", counted)
    return found
