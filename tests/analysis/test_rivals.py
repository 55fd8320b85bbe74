"""Each rival explanation of a gap: consistent, inconsistent, and not measured."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from traces import (
    FALLS,
    N_LONG,
    batchnorm,
    dead,
    linearity,
    make_case,
    merged,
    rank,
    scheduled,
    share_of_first,
    shattering,
    stepping,
)

from gradflow.analysis.case import Case
from gradflow.analysis.findings import Finding, decide
from gradflow.analysis.rivals import rivals

KEYS = ("H2", "H3", "H4", "H5", "H6", "H7", "H8", "H9", "H10")


def judged(case: Case) -> dict[str, Finding]:
    return {one.key: one for one in decide(rivals(case))}


Given = Mapping[str, Any]

# Key -> what makes it consistent, and what inconsistent: of the accused, of the reference.
CASES: dict[str, tuple[tuple[Given, Given], tuple[Given, Given]]] = {
    "H2": (
        (
            {
                "delta": 2,
                "tables": share_of_first(0.95),
                "examined": lambda s: linearity(early=0.1, seed=s),
            },
            {},
        ),
        (
            {
                "delta": 2,
                "tables": share_of_first(0.3),
                "examined": lambda s: linearity(early=1.0, seed=s),
            },
            {},
        ),
    ),
    "H3": (
        ({"examined": lambda s: shattering(0.02, s)}, {"examined": lambda s: shattering(0.3, s)}),
        ({"examined": lambda s: shattering(0.3, s)}, {"examined": lambda s: shattering(0.3, s)}),
    ),
    "H4": (
        ({"examined": lambda s: dead(0.4, s)}, {"examined": lambda s: dead(0.1, s)}),
        ({"examined": lambda s: dead(0.1, s)}, {"examined": lambda s: dead(0.1, s)}),
    ),
    "H5": (
        (scheduled(0.3), scheduled(1.5)),
        (scheduled(1.5, changed=0.99), scheduled(1.5)),
    ),
    "H6": (
        (
            {"examined": lambda s: batchnorm(running=1.0, recalibrated=0.7, seed=s)},
            {"examined": lambda s: batchnorm(running=0.6, recalibrated=0.6, seed=s)},
        ),
        (
            {"examined": lambda s: batchnorm(running=1.0, recalibrated=1.0, seed=s)},
            {"examined": lambda s: batchnorm(running=0.6, recalibrated=0.5, seed=s)},
        ),
    ),
    "H7": (
        (
            {"examined": lambda s: batchnorm(train=0.3, running=1.0, seed=s)},
            {"examined": lambda s: batchnorm(train=0.3, running=0.6, seed=s)},
        ),
        (
            {"examined": lambda s: batchnorm(train=0.7, running=1.0, seed=s)},
            {"examined": lambda s: batchnorm(train=0.3, running=0.6, seed=s)},
        ),
    ),
    "H8": (
        (stepping(0.24), stepping(0.6)),
        (stepping(0.7), stepping(0.6)),
    ),
    "H9": (
        ({"examined": lambda s: rank(3, 0.3, s)}, {"examined": lambda s: rank(50, 0.0, s)}),
        ({"examined": lambda s: rank(50, 0.0, s)}, {"examined": lambda s: rank(50, 0.0, s)}),
    ),
    "H10": (
        (
            {"examined": lambda s: linearity(later=0.3, seed=s)},
            {"examined": lambda s: linearity(later=0.9, seed=s)},
        ),
        (
            {"examined": lambda s: linearity(later=0.9, seed=s)},
            {"examined": lambda s: linearity(later=0.9, seed=s)},
        ),
    ),
}


def test_there_are_nine_rivals_in_order() -> None:
    assert tuple(judged(make_case({}, {}))) == KEYS == tuple(CASES)


@pytest.mark.parametrize("key", KEYS)
def test_consistent(key: str) -> None:
    found = judged(make_case(*CASES[key][0]))[key]
    assert found.status == "yes"
    assert found.missing == ()
    assert all(one.p_for < 0.01 for one in found.evidence)


@pytest.mark.parametrize("key", KEYS)
def test_inconsistent(key: str) -> None:
    found = judged(make_case(*CASES[key][1]))[key]
    assert found.status == "no"
    assert found.missing == ()


@pytest.mark.parametrize("key", KEYS)
def test_not_measured(key: str) -> None:
    """Only networks with gradients; H2 reads a part of its evidence from these."""
    found = judged(make_case({"delta": 2}, {}))[key]
    assert found.status == ("undetermined" if key == "H2" else "not measured")
    assert len(found.missing) == 1
    assert all(one.values for one in found.evidence)  # NaN, one for each seed


@pytest.mark.parametrize("key", KEYS)
def test_one_seed_decides_nothing(key: str) -> None:
    for given in CASES[key]:
        assert judged(make_case(*given, n_seeds=1))[key].status == "undetermined"


def part(found: Finding, name: str) -> tuple[float, ...]:
    return next(one.values for one in found.evidence if one.name == name)


def test_a_network_that_never_learned_is_the_slower_one() -> None:
    """Its loss does not fall, or even rises: no logarithm of that, and yet the clearest case."""
    for fall in (0.0, -0.5):
        values = part(judged(make_case(scheduled(fall), scheduled(1.5)))["H5"], "fall_to_reference")
        assert values == pytest.approx([fall / 1.5] * 5, abs=0.01)


def test_without_a_fall_of_the_learning_rate_no_schedule_is_accused() -> None:
    constant = {**scheduled(0.3), "learning_rates": np.full(N_LONG, 1e-3)}
    found = judged(make_case(constant, constant))["H5"]
    assert found.status == "not measured"
    assert "a fall of the learning rate" in found.missing[0]


def test_a_direction_that_is_kept_over_all_that_is_seen_counts_as_half_the_way() -> None:
    case = make_case(
        {"examined": lambda s: shattering(0.1, s)}, {"examined": lambda s: shattering(None)}
    )
    assert part(judged(case)["H3"], "decorrelation_0") == pytest.approx(
        [math.log10(0.2)] * 5, abs=0.01
    )


def test_shares_of_a_gap_that_is_not_there_are_not_formed() -> None:
    case = make_case(
        {"examined": lambda s: batchnorm(running=0.6, recalibrated=0.3, seed=s)},
        {"examined": lambda s: batchnorm(running=1.0, recalibrated=1.0, seed=s)},
    )
    found = judged(case)
    for key in ("H6", "H7"):
        assert found[key].status != "yes"
        assert found[key].missing == ("a gap in test loss that is surely above zero",)


def test_a_mismatch_that_the_reference_shares_explains_no_gap() -> None:
    case = make_case(
        {"examined": lambda s: batchnorm(running=1.0, recalibrated=0.7, seed=s)},
        {"examined": lambda s: batchnorm(running=0.6, recalibrated=0.2, seed=s)},
    )
    assert judged(case)["H6"].status == "no"


def test_what_could_not_be_measured_is_null_and_left_out() -> None:
    """None stands for what was not finite, as the examination writes it."""
    nulls = merged(rank(3, 0.3), linearity(), batchnorm())
    nulls["rank"]["0"]["effective_rank"][-1] = None
    nulls["rank"]["10"]["probe_accuracy"] = [None] * 9
    nulls["linearity"]["10"]["all"]["ratio"] = None
    nulls["batchnorm"]["end"]["test"]["plain"]["running"]["loss"] = None
    found = judged(make_case({"examined": nulls}, {"examined": nulls}))
    assert np.isfinite(part(found["H9"], "rank_to_reference")).all()
    assert part(found["H9"], "probe_drop") == pytest.approx([0.3] * 5, abs=0.01)
    assert np.isfinite(part(found["H10"], "linearity_to_reference")).all()
    assert found["H6"].status == found["H7"].status == "not measured"


def test_dead_channels_are_compared_in_the_stage_with_the_largest_excess() -> None:
    case = make_case({"examined": lambda s: dead(0.4, s)}, {"examined": lambda s: dead(0.1, s)})
    assert part(judged(case)["H4"], "dead_excess") == pytest.approx([0.3] * 5, abs=0.01)
    late = make_case({"examined": dead(0.4, step="end")}, {"examined": dead(0.1, step="end")})
    assert part(judged(late)["H4"], "dead_excess") == pytest.approx([0.3] * 5, abs=0.01)


def test_noise_is_read_after_the_warm_up_of_adam_and_before_the_learning_rate_falls() -> None:
    def table(seed: int) -> dict[str, Any]:
        rms = np.full((N_LONG, 1), 0.3 + (seed % 10) * 1e-4)
        rms[:10] = rms[50:] = 1.0
        return {"adam_update_rms": rms}

    given = {"n_steps": N_LONG, "learning_rates": FALLS, "tables": table}
    assert part(judged(make_case(given, {}))["H8"], "update_rms") == pytest.approx(
        [0.3] * 5, abs=0.001
    )
