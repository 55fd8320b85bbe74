"""Recording: what happens at every layer while a network trains.

Needs torch and NumPy only (pyarrow for files, pandas for frames), and nothing else of gradflow:
this is what other people's loops import.
"""

from typing import TYPE_CHECKING

from gradflow.lazy import lazy

if TYPE_CHECKING:
    from gradflow.record.measures import (
        DEFAULT_MEASURES,
        DERIVED,
        MEASURES,
        OUTPUT_MEASURES,
        PARAMETER_MEASURES,
        Derived,
        Measure,
    )
    from gradflow.record.recorder import Recorder
    from gradflow.record.schedule import MaxOverhead, Schedule, every
    from gradflow.record.trace import NonFinite, Trace, load_histograms

__all__ = [
    "DEFAULT_MEASURES",
    "DERIVED",
    "MEASURES",
    "OUTPUT_MEASURES",
    "PARAMETER_MEASURES",
    "Derived",
    "MaxOverhead",
    "Measure",
    "NonFinite",
    "Recorder",
    "Schedule",
    "Trace",
    "every",
    "load_histograms",
]

__getattr__, __dir__ = lazy(__name__)
