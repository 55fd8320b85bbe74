"""Text of others on its way to a terminal or a page: names of classes and files, commands."""

import re

# Control characters of C0 (but tab and new line), DEL and C1, which move the cursor, set the title
# or the clipboard; those that turn the direction of reading; and halves of surrogate pairs, which
# stand for bytes that are no UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""`text` with each character that a terminal would obey as its escape.

    >>> visible("a\x1b]0;title\x07")
    'a\\x1b]0;title\\x07'
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""The same, and in one line.

    >>> one_line("train\nrm -rf /")
    'train\\nrm -rf /'
    """
    return visible(text).replace("\n", "\\n").replace("\t", " ")
