"""A study gives each network the recorded gradient sizes of the other one, and both are trained."""

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny

from gradflow.studies import Engine, Study, StudyDir, run_study
from gradflow.studies.results import ArmResult

pytestmark = pytest.mark.usefixtures("in_this_process")

GIVEN = "transplant(profile={cells}/baseline/reference-s{seed}/resnet_18-s{seed})"
TAKEN = "transplant(profile={cells}/baseline/accused-s{seed}/plain_18-s{seed})"
ARMS: dict[str, Any] = {
    "given": {"tests": "size", "networks": "accused", "intervene": GIVEN},
    "taken": {"tests": "size", "networks": "reference", "intervene": TAKEN},
}


def error_of_norms(one: ArmResult) -> dict[str, Any]:
    (check,) = (check for check in one.checks if check["what"].startswith("largest relative"))
    return dict(check)


def test_each_network_is_trained_with_the_gradient_sizes_of_the_other(
    pictures: Path, tmp_path: Path
) -> None:
    content = tiny(pictures, arms=ARMS, restores="given", base={"log_grads": True, "epochs": 1})
    found = run_study(Study.read(content, name="t", changes={}), StudyDir(tmp_path), Engine())
    assert {one.arm.name: one.seeds for one in found.arms} == {"given": (0,), "taken": (0,)}
    for one, place in zip(found.arms, ("accused", "reference"), strict=True):
        check = error_of_norms(one)
        assert (check["of"], check["network"], check["passed"]) == ("transplant", place, True)
        assert one.moved
        before, after = (
            found.level(name, place, "train_loss") for name in ("baseline", one.arm.name)
        )
        assert before is not None
        assert after is not None
        assert before.mean != after.mean, "the sizes made a difference"
