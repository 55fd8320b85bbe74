"""Studies: causes by intervention. Change one thing in both networks, and see which share of the
gap goes away, over seeds.
"""

from typing import TYPE_CHECKING

from gradflow.lazy import lazy

if TYPE_CHECKING:
    from gradflow.studies.diagnosis import diagnose_study
    from gradflow.studies.engine import Engine
    from gradflow.studies.folder import StudyDir
    from gradflow.studies.results import Results, analyse
    from gradflow.studies.run import run_study
    from gradflow.studies.study import Arm, Cell, Network, Study

__all__ = [
    "Arm",
    "Cell",
    "Engine",
    "Network",
    "Results",
    "Study",
    "StudyDir",
    "analyse",
    "diagnose_study",
    "run_study",
]

__getattr__ = lazy(
    __name__,
    {
        "diagnosis": ("diagnose_study",),
        "engine": ("Engine",),
        "folder": ("StudyDir",),
        "results": (
            "Results",
            "analyse",
        ),
        "run": ("run_study",),
        "study": (
            "Arm",
            "Cell",
            "Network",
            "Study",
        ),
    },
)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
