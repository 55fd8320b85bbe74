"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradflow.analysis.numerals import beside, p_text, plain


@pytest.mark.parametrize(
    ("value", "text"),
    [(110.0, "110"), (1.1e5, "110,000"), (99.96, "100"), (3.0, "3"), (-450.0, "-450"),
     (1e-5, "1e-05"), (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_a_number_is_written_out(value, text):
    assert plain(value, 2) == text


def test_no_p_is_zero():
    assert p_text(0.0) == p_text(1e-9) == "p < 0.0001"
    assert p_text(0.0001) == "p = 0.0001"
    assert p_text(1.0) == "p = 1"


@given(st.floats(-2, 2), st.sampled_from([0.9, 0.05, -0.1, 0.0]))
def test_what_is_shown_is_on_the_same_side_of_the_threshold(value, threshold):
    shown = float(beside(value, threshold))
    assert (shown < threshold, shown > threshold) == (value < threshold, value > threshold)
    assert shown == pytest.approx(value, abs=0.005 + 1e-12)
