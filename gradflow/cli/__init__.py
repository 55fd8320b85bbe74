"""The command line: parse, call, print. One module per command, found by `entry`."""

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see `entry.main`. Ctrl-C ends it with 130 also while it starts up."""
    try:
        _open_what_is_closed()
        from gradflow.cli.entry import main as run

        return run(arguments)
    except KeyboardInterrupt:
        print("gradflow: Stopped.", file=sys.stderr)
        return 130


def _open_what_is_closed() -> None:
    """Without this, as after `>&-`, the next file that is opened would be taken for the output."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, mode))
