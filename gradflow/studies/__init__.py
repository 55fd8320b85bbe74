"""Studies: causes by intervention. Change one thing in both networks, and see which share of the
gap goes away, over seeds.
"""

from typing import TYPE_CHECKING

from gradflow.lazy import lazy

if TYPE_CHECKING:
    from gradflow.studies.arms import Arm, Cell, Network
    from gradflow.studies.engine import Engine
    from gradflow.studies.folder import StudyDir
    from gradflow.studies.judging import analyse
    from gradflow.studies.results import Results
    from gradflow.studies.run import run_study
    from gradflow.studies.study import Study

__all__ = [
    "Arm",
    "Cell",
    "Engine",
    "Network",
    "Results",
    "Study",
    "StudyDir",
    "analyse",
    "run_study",
]

__getattr__, __dir__ = lazy(__name__)
