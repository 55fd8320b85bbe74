"""Interventions: change the one thing that an explanation names, and see whether it matters.

A correlation of gradient norms with accuracy proves nothing. `docs/interventions.md` says what each
one changes, why, and how the change is checked.
"""

from gradflow.interventions.applied import INTERVENTIONS, Applied, parse
from gradflow.interventions.gradients import Freeze, GradientScale, Transplant
from gradflow.interventions.initial import DeltaOrthogonal, LayerVariance
from gradflow.interventions.intervention import Check, CheckInputs, GradientChange, Intervention
from gradflow.interventions.network import LeakySlope, NormBias, NormFree, SkipStrength
from gradflow.interventions.training import Accumulate, RandomLabels, Recalibrate, Reset
from gradflow.lazy import lazy

__all__ = [
    "INTERVENTIONS",
    "Accumulate",
    "Applied",
    "Check",
    "CheckInputs",
    "DeltaOrthogonal",
    "Freeze",
    "GradientChange",
    "GradientScale",
    "Intervention",
    "LayerVariance",
    "LeakySlope",
    "NormBias",
    "NormFree",
    "RandomLabels",
    "Recalibrate",
    "Reset",
    "SkipStrength",
    "Transplant",
    "parse",
]

__getattr__, __dir__ = lazy(__name__, renamed={"Evidence": "CheckInputs"})
