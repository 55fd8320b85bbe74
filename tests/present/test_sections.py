"""Sections as Markdown, page and terminal: all of it, in order, and no name is obeyed."""

import html
import re

import pytest

from gradflow.present.letter import letter
from gradflow.present.markdown import markdown
from gradflow.present.report import page
from gradflow.present.section import Box, Code, Items, Reason, Section, TextTable, Tiles
from tests.present.printed import printed

EVIL = "<script>alert(1)</script> [bold]a[/bold] a|b"
PIXEL = "data:image/png;base64,AAAA"
SECTIONS = [
    Section("answer", "Does it?", [Box("Yes: it does.", ["because of `gradflow diagnose`"])]),
    Section(
        "why",
        "Why",
        [
            f"a paragraph with {EVIL}",
            [Reason("link 1: yes", "is it there?", ["the evidence"])],
            TextTable(["name", "number"], [[EVIL, "1.5"], ["other", "2"]], "A table"),
            Items(["first", "second"], "Next", numbered=True),
            Items(["waits for a click"], "Details", folded=True),
            Code(["gradflow train"], "bash"),
            Code(["epochs: 2"], "yaml", "The config"),
            Tiles([f"taken for {EVIL}"], [PIXEL]),
        ],
    ),
]
ORDER = ("Does it?", "Yes: it does.", "because of", "Why", "a paragraph", "link 1: yes",
         "is it there?", "the evidence", "A table", "number", "1.5", "Next", "first", "second",
         "Details", "waits for a click", "gradflow train", "The config", "epochs: 2",
         "taken for")  # fmt: skip
FOLDED = {"Details", "waits for a click", "The config", "epochs: 2", "taken for"}


def in_terminal() -> str:
    return printed(letter(*SECTIONS), width=100)


def in_page() -> str:
    written = page.html(SECTIONS, static=True)
    return written[written.index("<header>") :]


@pytest.mark.parametrize("shown", [lambda: markdown(SECTIONS, "figures"), in_page, in_terminal])
def test_every_part_is_shown_once_in_its_order_and_no_name_is_obeyed(shown) -> None:
    text = shown()
    wanted = [one for one in ORDER if shown is not in_terminal or one not in FOLDED]
    places = [text.index(one) for one in wanted]
    assert places == sorted(places)
    if shown is in_terminal:
        assert not [one for one in FOLDED if one in text]
        assert EVIL in text
    else:
        assert "<script>" not in text
        assert html.unescape(text).count("alert(1)") == (3 if shown is not in_page else 4)


def test_a_bar_in_a_cell_ends_no_cell_and_numbers_stand_at_the_right() -> None:
    table = TextTable(["name", "number"], [["a|b\nc", "1"]])
    written = markdown([Section("k", "t", [table])], "figures")
    assert written.splitlines()[2:] == ["| name | number |", "|---|---:|", r"| a\|b c | 1 |"]


def test_what_is_typed_is_code_in_the_page_and_what_is_folded_waits_for_a_click() -> None:
    text = in_page()
    assert "because of <code>gradflow diagnose</code>" in text
    assert re.search(r"<details><summary>Details</summary>\s*<ul>\s*<li>waits for a click", text)
    assert f'<img src="{PIXEL}"' in text
