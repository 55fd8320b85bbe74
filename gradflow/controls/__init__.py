"""Controls: networks whose truth is known, and whether gradflow finds it.

An instrument that has not been shown a vanishing gradient proves nothing by not seeing one.
"""

from typing import TYPE_CHECKING

from gradflow.lazy import lazy

if TYPE_CHECKING:
    from gradflow.controls.closed_forms import (
        expected_growth_bn_bias,
        expected_growth_bn_leaky,
        expected_growth_bn_linear,
        expected_growth_bn_relu,
        expected_growth_linear,
        expected_growth_relu,
        sigmoid_rate,
    )
    from gradflow.controls.gate import CaseResult, Gate, load_gate, run_all
    from gradflow.controls.networks import KnownNetwork
    from gradflow.controls.truths import CONTROLS, Control, ControlResult, Measured, measure, run

__all__ = [
    "CONTROLS",
    "CaseResult",
    "Control",
    "ControlResult",
    "Gate",
    "KnownNetwork",
    "Measured",
    "expected_growth_bn_bias",
    "expected_growth_bn_leaky",
    "expected_growth_bn_linear",
    "expected_growth_bn_relu",
    "expected_growth_linear",
    "expected_growth_relu",
    "load_gate",
    "measure",
    "run",
    "run_all",
    "sigmoid_rate",
]

__getattr__, __dir__ = lazy(__name__, renamed={"Case": "KnownNetwork"})
