"""A verdict in the terminal, as golden text: what was read and found good, held to the letter.

To rewrite it after a change that was meant, and then to read it:
`GRADFLOW_REWRITE_GOLDEN=1 pytest tests/present/test_letter.py`.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from gradflow.analysis.verdict import Verdict, judge_case
from gradflow.present.letter import letter, profiles
from gradflow.present.terminal_plot import can_show_braille, depth_picture
from gradflow.present.verdict_story import answer, why
from tests.analysis.traces import make_case
from tests.present.printed import printed

GOLDEN = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GRADFLOW_REWRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    accused = {"delta": -3.0, "loss": 1.0, "accuracy": 0.6, "first_moves": 0.01}
    return judge_case(make_case(accused, {"delta": 0.0}))


def test_the_letter_reads_as_it_did(verdict: Verdict) -> None:
    check_golden("letter.txt", printed(letter(answer(verdict), why(verdict)), width=80) + "\n")


@pytest.mark.parametrize("braille", [True, False])
def test_the_profiles_look_as_they_did(verdict: Verdict, braille: bool) -> None:
    name = f"profiles-{'braille' if braille else 'ascii'}.txt"
    check_golden(name, printed(profiles(verdict, braille=braille), width=80) + "\n")


def test_the_ten_lines_read_as_they_did(verdict: Verdict) -> None:
    few = judge_case(make_case({"delta": -3.0}, {"delta": 0.0}, n_seeds=3))
    alone = judge_case(make_case({"delta": 0.0}))
    for one in (verdict, few, alone):
        assert len(str(one).splitlines()) <= 9  # `diagnose` adds one for --full and the picture
        assert max(map(len, str(one).splitlines())) <= 160
    check_golden("brief.txt", "\n\n".join(map(str, (verdict, few, alone))) + "\n")
    assert repr(few) == "<Verdict undetermined: plain against residual, 3 seeds of each>"


def test_a_falling_line_touches_both_ends_of_its_axis_and_the_labels_are_its_values() -> None:
    lines = depth_picture({"one": np.array([-3.0, 2.0])}, "loss")
    assert lines[1].split()[0] == "1e+02"
    assert lines[4].split()[0] == "0.001"
    assert lines[1][-1] in "⠈⠉"  # the last layer is the highest
    assert lines[4][12] in "⡀⣀"  # the first is the lowest


def test_missing_layers_are_gaps_and_odd_profiles_draw_what_there_is() -> None:
    gap = depth_picture({"one": np.array([0.0, np.nan, np.nan, 0.0])}, "loss")
    assert "⠀" * 10 in gap[1]
    assert depth_picture({"one": np.full(3, np.nan)}, "loss") == []
    assert depth_picture({}, "loss") == []
    single = "".join(depth_picture({"one": np.array([1.0]), "none": np.empty(0)}, "loss"))
    assert any("⠀" < character <= "⣿" for character in single)


def test_only_encodings_with_braille_are_given_braille() -> None:
    assert can_show_braille("utf-8")
    assert not any(can_show_braille(one) for one in ("ascii", "latin-1", "cp437", None, "no such"))
