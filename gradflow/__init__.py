"""gradflow measures, layer by layer, whether the gradients of a network vanish while it trains."""

from gradflow.nets import plain_18, plain_34, resnet_18, resnet_34
from gradflow.record import MaxOverhead, Recorder, Trace, every

__version__ = "0.1.0"

__all__ = [
    "MaxOverhead",
    "Recorder",
    "Trace",
    "every",
    "plain_18",
    "plain_34",
    "resnet_18",
    "resnet_34",
]
