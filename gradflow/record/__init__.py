"""Recording: what happens at every layer while a network trains.

Needs torch and NumPy only (pyarrow for files, pandas for frames), and nothing else of gradflow:
this is what other people's loops import.
"""

from gradflow.record.measures import MEASURES, Measure
from gradflow.record.recorder import Recorder
from gradflow.record.schedule import Schedule, every
from gradflow.record.trace import Trace

__all__ = ["MEASURES", "Measure", "Recorder", "Schedule", "Trace", "every"]
