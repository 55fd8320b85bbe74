"""The command line: parse, call, print. One module per command, found by `entry`."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see `entry.main`. Ctrl-C ends it with 130 also while it starts up."""
    try:
        from gradflow.cli.entry import main as run

        return run(arguments)
    except KeyboardInterrupt:
        print("gradflow: Stopped.", file=sys.stderr)
        return 130
