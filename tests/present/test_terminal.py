"""What the terminal shows, word for word where a person relies on it."""

import numpy as np
import pytest

from gradflow.analysis import DepthProfile
from gradflow.present import terminal
from gradflow.training.fit import Epoch
from gradflow.training.original import PUBLISHED
from tests.present.printed import printed


def network(name: str, arch: str, ratio: float | None) -> dict:
    part = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}
    result = {"epoch": 2, "train": part, "validation": part, "test": part}
    return {
        "name": name,
        "arch": arch,
        "best": result,
        "last": result | {"epoch": 4},
        "published": PUBLISHED.get(arch),
        "grad_norm_first_to_last": {"first_recorded_step": ratio, "over_training": ratio},
    }


SUMMARY = {
    "run": "runs/x",
    "networks": [network("plain_34-s0", "plain_34", 85.3), network("resnet_34-s0", "r", None)],
    "comparisons": [
        {
            "seed": 0,
            "epoch": "best",
            "first": "plain_34",
            "second": "resnet_34",
            "only_first_right": 3,
            "only_second_right": 17,
            "p_value": 0.00258,
        }
    ],
}


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([1, 10, 100], "▁▅█"),
        ([100, np.nan, 0, np.inf, 1], "█···▁"),
        ([1, 1], "▁▁"),
    ],
)
def test_bars_are_logarithmic_and_tell_missing_values(values: list[float], bars: str) -> None:
    assert terminal.bar_picture(np.array(values, float), 1.0, 100.0) == bars
    assert terminal.bar_picture(np.array([3.0, 3.0]), 3.0, 3.0) == "▁▁", "of one value only"


def test_epoch_line() -> None:
    epoch = Epoch(4, 90, 6e-4, 1.25, 0.5, 1.5, 0.25, True, 12.34, ())
    assert terminal.epoch_line("plain_34-s0", epoch, 50) == (
        "plain_34-s0  epoch   5/50  lr 6.0e-04  train loss 1.2500 acc 0.500  "
        "val loss 1.5000 acc 0.250   12.3 s  best so far"
    )


def test_summary_names_result_interval_published_value_test_and_profile() -> None:
    profiles = {
        "plain_34-s0": DepthProfile("grad_norm", ("a", "b", "c"), np.array([100.0, 10, 1])),
        "resnet_34-s0": DepthProfile("grad_norm", ("a", "b"), np.array([1.0, 1])),
    }
    shown = printed(terminal.summary_view(SUMMARY, profiles))
    for words in (
        "0.500 (0.400 to 0.600)",
        "0.702 / 0.428",  # published
        "best (3)",
        "on 3 test images only plain_34 is right, on 17 only resnet_34",
        "p = 0.0026",
        "plain_34-s0   █▅▁  first/last convolution: 85× at the first recorded step",
        "resnet_34-s0  ▁▁  first/last convolution: unknown",
        "next       gradflow report runs/x",
        "           gradflow saliency IMAGE --run runs/x",
    ):
        assert words in shown


def test_summary_without_records_says_how_to_get_them() -> None:
    assert "add --log-grads" in printed(terminal.summary_view(SUMMARY, {}))


def test_class_names_are_not_markup() -> None:
    shown = printed(terminal.probabilities_view({"net": {"[bold]odd[/bold]": 0.7, "b": 0.3}}))
    assert "[bold]odd[/bold]" in shown
    assert "→ 70.0%" in shown


def test_contamination_is_told_with_its_share() -> None:
    split = {
        "kind": "random",
        "validation_is_test": True,
        "counts": {
            "train": 885,
            "validation": 222,
            "test": 222,
            "set_aside": 0,
            "contaminated": 128,
            "near_contaminated": 150,
        },
    }
    shown = printed(terminal.split_view(split))
    assert "128 of 222 test images (58%)" in shown
    assert "the same" in shown
