"""gradflow measures, layer by layer, whether the gradients of a network vanish while it trains."""

from typing import TYPE_CHECKING

from gradflow.lazy import lazy
from gradflow.version import VERSION

if TYPE_CHECKING:
    from gradflow import nets as nets  # at hand after `import gradflow`
    from gradflow import record as record
    from gradflow.examine.initial import check
    from gradflow.nets import plain_18, plain_34, resnet_18, resnet_34
    from gradflow.present.live import watch
    from gradflow.present.report.page import report
    from gradflow.present.saliency.asked import saliency
    from gradflow.record import MaxOverhead, Recorder, Trace, every
    from gradflow.training.config import TrainConfig
    from gradflow.training.diagnosis import judge
    from gradflow.training.train import train

__version__ = VERSION

__all__ = [
    "MaxOverhead",
    "Recorder",
    "Trace",
    "TrainConfig",
    "check",
    "every",
    "judge",
    "plain_18",
    "plain_34",
    "report",
    "resnet_18",
    "resnet_34",
    "saliency",
    "train",
    "watch",
]

__getattr__, __dir__ = lazy(__name__)
