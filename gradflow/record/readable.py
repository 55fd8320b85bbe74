"""Which tensors can be read. What cannot is "not taken", and said once per place and reason."""

import logging

import torch
from torch import Tensor

_log = logging.getLogger("gradflow")
_NO_DISPATCH = Tensor.__torch_dispatch__


def unreadable(x: Tensor) -> str | None:
    """Why the elements of `x` cannot be read from memory; None where they can.

    A subclass with a `__torch_dispatch__` of its own (DTensor, MaskedTensor, FakeTensor, jagged
    nested tensors, quantized weights of torchao) keeps its elements elsewhere, if it has any.
    """
    if type(x) is not Tensor and type(x).__torch_dispatch__ is not _NO_DISPATCH:
        return f"a {type(x).__name__} has no memory of its own"
    if x.is_nested:
        return "a nested tensor has no one shape"
    if x.layout is not torch.strided:
        return f"its layout is {x.layout}"
    if x.is_meta:
        return "a tensor on the meta device has no elements"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is running"
    if x.is_cpu and not x.data_ptr() and x.numel():
        return "its memory was given back"
    return None


class NotTaken:
    """Says what is not taken, and why: a warning of the logger "gradflow", once for each.

    Not `warnings.warn`, which becomes an exception inside the user's training under `-W error`.
    """

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def say(self, what: str, why: str) -> None:
        if (what, why) not in self._said:
            self._said.add((what, why))
            _log.warning("gradflow does not take %s: %s.", what, why)

    def failed(self, what: str, error: Exception) -> None:
        """Reading it raised, which is no fault of the training."""
        text = " ".join(str(error).split())[:200]
        self.say(what, f"reading it raised {type(error).__name__}: {text}")
