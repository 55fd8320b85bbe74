"""Runs `gradflow` in a child for each line of JSON on stdin, and kills it while it writes.

A line holds the arguments and `at`: the number of the file, counted from 0, at whose renaming the
child is killed with SIGKILL, `before` or after it; null lets it end. Answers with a line of JSON:
the status of the child, and the files that it wrote. By forking, the start-up is paid once.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch

import gradflow.training.train  # noqa: F401 so that a child need not load it
from gradflow.cli import main


def run(arguments: list[str], at: int | None, before: bool, log: Path) -> None:
    rename, n = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal n
        if not self.name.startswith(".unfinished-"):
            return rename(self, target)
        with log.open("a") as file:
            file.write(f"{target}\n")
        if n == at and before:
            os.kill(os.getpid(), signal.SIGKILL)
        done = rename(self, target)
        if n == at:
            os.kill(os.getpid(), signal.SIGKILL)
        n += 1
        return done

    Path.replace = replace  # type: ignore[method-assign, assignment]
    torch.set_num_threads(1)
    os._exit(main(arguments))


def serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            log.touch()
            child = os.fork()
            if not child:
                os.dup2(2, 1)
                run(asked["arguments"], asked["at"], asked["before"], log)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps({"code": code, "files": log.read_text().splitlines()}), flush=True)


if __name__ == "__main__":
    serve()
