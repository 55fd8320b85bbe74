"""gradflow measures, layer by layer, whether the gradients of a network vanish while it trains."""

from typing import TYPE_CHECKING, Any

from gradflow.nets import plain_18, plain_34, resnet_18, resnet_34
from gradflow.record import MaxOverhead, Recorder, Trace, every

if TYPE_CHECKING:
    from gradflow.examine.initial import check
    from gradflow.training.diagnosis import judge

__version__ = "0.1.0"

__all__ = [
    "MaxOverhead",
    "Recorder",
    "Trace",
    "check",
    "every",
    "judge",
    "plain_18",
    "plain_34",
    "resnet_18",
    "resnet_34",
]

# Where the names are that need more than torch and NumPy: looked up when they are first used.
_LAZY = {"check": "gradflow.examine.initial", "judge": "gradflow.training.diagnosis"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
