"""What tests of the records share: one seed, and who takes the sums."""

from collections.abc import Iterator

import pytest
import torch

from gradflow.record import kernel


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
