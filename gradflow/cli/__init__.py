"""The command line: parse, call, print. One module per command, found by `entry`."""

from gradflow.cli.entry import app, main

__all__ = ["app", "main"]
