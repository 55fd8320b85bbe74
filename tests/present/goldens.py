"""Golden text: what was read and found good, held to the letter.

To rewrite it after a change that was meant, and then to read it:
`GRADFLOW_REWRITE_GOLDEN=1 pytest tests/present/test_letter.py`, or another test that uses this.
"""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GRADFLOW_REWRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
