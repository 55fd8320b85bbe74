"""Runs `gradflow` in a child for each line of JSON on stdin, and kills it while it writes.

A line holds the arguments and `at`: the name of a file, and how many of that name come first. When
it is renamed the child is killed with SIGKILL, `before` it, with half of the file written, or after
it; null lets it end. Answers with a line: the status of the child. By forking, the start-up is paid
once.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import gradflow.training.train  # noqa: F401 so that a child need not load it
from gradflow.cli import main


def run(arguments: list[str], at: tuple[str, int] | None, before: bool) -> None:
    rename, n = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal n
        if at is None or Path(target).name != at[0]:
            return rename(self, target)
        if n == at[1] and before:
            os.truncate(self, self.stat().st_size // 2)  # in the middle of writing it
            os.kill(os.getpid(), signal.SIGKILL)
        done = rename(self, target)
        if n == at[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        n += 1
        return done

    Path.replace = replace  # type: ignore[method-assign, assignment]
    torch.set_num_threads(1)
    os._exit(main(arguments))


def serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            os.dup2(2, 1)
            run(asked["arguments"], asked["at"], asked["before"])
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
