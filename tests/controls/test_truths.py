"""Every control passes, used as the command uses it."""

import json
from dataclasses import replace
from functools import partial
from math import isnan

import numpy as np
import pytest
import torch
from torch import nn

from gradflow.analysis.layers import body, main_path
from gradflow.analysis.rates import trace_rate
from gradflow.controls import CONTROLS, Control, ControlResult, measure, networks, run
from gradflow.controls.networks import INPUT_STREAM, record
from gradflow.controls.truths import IMAGES

# Where the truth is an average, all seeds; elsewhere few, since one network comes close already.
FEW = {"C5": 2, "C6": 2}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS.keys())
def test_the_instrument_finds_the_truth(control: Control) -> None:
    (result,) = run([control], FEW.get(control.name[:2]))
    assert result.mean == pytest.approx(control.expected, abs=result.allowed)
    assert result.n_labels_right == result.n_seeds
    assert result.passed


def test_every_family_has_a_control() -> None:
    assert {name[:2] for name in CONTROLS} == {"C1", "C2", "C4", "C5", "C6", "C7"}
    assert {control.label for control in CONTROLS.values()} == {"vanishing", "healthy", "exploding"}


def test_plain_34_by_plain_autograd() -> None:
    """The same λ without Recorder, Trace and rates: gradients retained on the norms' outputs."""
    control = CONTROLS["C6 Plain-34 with BatchNorm"]
    model = networks.plain_34_with_norm("kaiming", 0)
    outputs = []

    def keep(_: nn.Module, __: object, output: torch.Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(keep)
    random = torch.Generator().manual_seed(INPUT_STREAM)
    logits = model(torch.empty(IMAGES).normal_(generator=random))
    (torch.empty(logits.shape).normal_(generator=random) * logits).sum().backward()
    norms = [float(one.grad.double().norm()) for one in outputs if one.grad is not None]
    table = record(control, 0)
    path = body(main_path(table))
    sites = [layer.output for layer in path]
    recorded = table.select("output_grad_norm")
    mine = [recorded.values[0, recorded.sites.index(str(site))] for site in sites]
    assert mine == pytest.approx(norms, rel=1e-4)
    logs = np.log(norms[1:])  # without the stem
    slope = np.polyfit(np.arange(len(logs), 0, -1), logs, 1)[0]
    assert measure(control, 0).growth == pytest.approx(np.exp(2 * slope), rel=1e-4)


# -- passing and failing -------------------------------------------------------------------------

GAIN_2 = Control(
    "gain 2", partial(networks.orthogonal_linear, 12, 4, 2.0), (2, 4), "exploding",
    networks.PRECISE, truth="λ = 4", source="", expected=4.0, why="", rtol=1e-6,
)  # fmt: skip


RELATIVE, SAMPLED = replace(GAIN_2, rtol=0.05), replace(GAIN_2, rtol=0.0, n_errors=3.0)


@pytest.mark.parametrize(
    ("control", "mean", "error", "n_right", "passed"),
    [
        (RELATIVE, 4.19, 1.0, 20, True),
        (RELATIVE, 4.21, 1.0, 20, False),  # the tolerance does not grow with the scatter
        (RELATIVE, 3.79, 1.0, 20, False),
        (RELATIVE, float("nan"), 0.1, 20, False),
        (SAMPLED, 4.29, 0.1, 20, True),
        (SAMPLED, 4.31, 0.1, 20, False),
        (SAMPLED, 4.0, float("nan"), 20, False),  # one seed has no standard error
        (GAIN_2, 4.0, 0.1, 19, True),
        (GAIN_2, 4.0, 0.1, 18, False),  # a label that is wrong more than once in twenty
    ],
)
def test_a_control_passes_within_its_tolerance_and_with_its_label(
    control: Control, mean: float, error: float, n_right: int, passed: bool
) -> None:
    assert ControlResult(control, mean, error, 20, n_right, 1.0).passed == passed


@pytest.mark.parametrize(("rtol", "n_errors"), [(0.0, 0.0), (0.1, 3.0)])
def test_a_control_has_one_tolerance(rtol: float, n_errors: float) -> None:
    with pytest.raises(ValueError, match="Expected either `rtol` or `n_errors` above 0"):
        replace(GAIN_2, rtol=rtol, n_errors=n_errors)


def test_progress_counts_networks_and_results_are_plain() -> None:
    calls: list[tuple[int, int]] = []
    (first, _) = run([GAIN_2, GAIN_2], 1, lambda n_done, n: calls.append((n_done, n)))
    assert calls == [(1, 2), (2, 2)]
    assert isnan(first.standard_error)
    content = json.loads(json.dumps(first.to_json(), allow_nan=False))
    assert (content["standard_error"], content["passed"]) == (None, True)
    assert content["mean"] == pytest.approx(content["expected"])


def test_ends_are_left_out_of_the_rate_and_not_of_the_label() -> None:
    control = replace(GAIN_2, skipped=(5, 5))
    assert len(trace_rate(record(control, 0), "output_gradient").values) == 11
    assert np.isnan(measure(control, 0).growth), "one layer is left"
    assert measure(control, 0).label == "exploding"
    found = measure(replace(control, skipped=(4, 4)), 0)
    assert found.growth == pytest.approx(4)
    assert found.label == "exploding"
