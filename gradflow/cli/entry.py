"""The program: finds the command, calls it, and turns errors into sentences and exit codes."""

import errno
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import cyclopts
from cyclopts import UNSET, App, Token
from rich.console import Console

from gradflow.cli.bench import bench
from gradflow.cli.check import check
from gradflow.cli.console import stderr
from gradflow.cli.data import data
from gradflow.cli.diagnose import compare, diagnose
from gradflow.cli.options import (
    FAILED,
    INTERRUPTED,
    OK,
    START,
    USAGE,
    Flowing,
    description,
    epilogue,
)
from gradflow.cli.panels import wandb_panels
from gradflow.cli.report import report
from gradflow.cli.saliency import saliency
from gradflow.cli.study import study
from gradflow.cli.train import train
from gradflow.cli.watch import watch
from gradflow.files import decoding
from gradflow.present.visible import visible
from gradflow.training.config import TrainConfig
from gradflow.training.recipes import RECIPES
from gradflow.typed import shown
from gradflow.version import VERSION

LONGEST = 1000  # characters of an error
MOST_NAMED = 10  # files of which a decoder's warning is printed

COMMANDS = (
    train, watch, data, saliency, check, diagnose, compare, report, study, wandb_panels, bench,
)  # fmt: skip

app = App(
    name="gradflow",
    version=VERSION,
    help="Measure, layer by layer, whether the gradients of a network vanish while it trains.",
    help_prologue=START,
    help_format="plaintext",
    help_formatter=Flowing(),
)
for command in COMMANDS:
    name = command.__name__.replace("_", "-")
    app.command(
        command,
        help=description(command.__doc__ or ""),
        help_prologue="",
        help_epilogue=epilogue(name),
    )


def _refuse_what_would_be_misread(_app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """A number that would be rounded, and a path that is empty or that nobody can follow."""
    for argument in arguments:
        kinds = {argument.hint, *get_args(argument.hint)}
        for value in (token.value for token in argument.tokens if token.implicit_value is UNSET):
            if int in kinds and _is_fraction(value):
                raise ValueError(f"Expected {argument.name} to be a whole number, but got {value}.")
            if Path in kinds:
                _check_path(argument.name, value)


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except ValueError:  # no number: cyclopts says so
        return False


def _check_path(name: str, value: str) -> None:
    """Raises ValueError where asking for the file would raise something else."""
    reason = "" if value.strip() else "an empty one"
    try:
        Path(value).stat()
    except ValueError as error:  # a NUL
        reason = str(error)
    except OSError as error:
        reason = str(error.strerror) if error.errno in (errno.ELOOP, errno.ENAMETOOLONG) else reason
    if reason:
        raise ValueError(f"Expected {name} to be a path, but got {shown(value)}: {reason}.")


def _read_config_file(_app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Let the file that `--config` names set what the command line does not."""
    file = next((one for one in arguments if one.name == "--config" and one.tokens), None)
    if file is None:
        return
    path = file.tokens[0].value
    _set_unless_given(arguments, TrainConfig.read_some(Path(path)), path)


def _read_recipe(_app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Let the recipe of a data set set what neither the command line nor the file does."""
    given = {argument.name: argument.tokens for argument in arguments}
    if commands != ("train",) or given["--resume"]:  # a run goes on with the config that it has
        return
    data = TrainConfig.data
    if given["--data"]:
        (token,) = given["--data"]
        data = token.value or str(token.implicit_value)
    if data in RECIPES:
        _set_unless_given(arguments, RECIPES[data].fields, f"the recipe of {data}")


def _set_unless_given(arguments: Any, fields: Mapping[str, Any], source: str) -> None:
    for name, value in fields.items():
        argument = next(one for one in arguments if one.name == f"--{name.replace('_', '-')}")
        if not argument.tokens:
            argument.append(Token(keyword=argument.name, implicit_value=value, source=source))


app.config = (_refuse_what_would_be_misread, _read_config_file, _read_recipe)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 1 (it failed), 2 (usage), 3 (judged so) or 130 (Ctrl-C)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    errors = stderr()
    warnings.formatwarning = _as_sentences()
    warnings.filterwarnings("always", module=r"PIL\.")  # for each file, and not for the first alone
    return _run(arguments, errors)


def _as_sentences() -> Callable[..., str]:
    """How warnings are printed: with the file that is decoded, and not for thousands of them."""
    numbers = itertools.count()

    def text(message: Warning | str, *_: Any, **__: Any) -> str:
        file, said = decoding.get(), visible(" ".join(str(message).split()))
        if not file:
            return f"gradflow: {said}\n"
        number = next(numbers)
        if number < MOST_NAMED:
            return f"gradflow: {visible(file)}: {said}\n"
        return "gradflow: … and more such files.\n" if number == MOST_NAMED else ""

    return text


def _run(arguments: Sequence[str], errors: Console) -> int:
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, error_console=errors)
    except cyclopts.CycloptsError:
        return USAGE  # cyclopts has said why
    except (ValueError, OSError) as error:  # a number out of its range, no such config file
        return _say(errors, error, USAGE)
    try:
        code = int(command(*bound.args, **bound.kwargs) or OK)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _say(errors, "Stopped.", INTERRUPTED)
    except BrokenPipeError:  # who read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich has met it, and let go of stdout
            return FAILED
        # from code of the user's that was imported, with a code of its own
        return _say(errors, f"Expected your code to return, but it exited: {error.code}", FAILED)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        return _failed(errors, error)


def _failed(errors: Console, error: Exception) -> int:
    if isinstance(error, OSError):
        is_ours = isinstance(error, FileNotFoundError) and error.errno is None
        return _say(errors, error, USAGE if is_ours else FAILED)
    if _lacks_memory(error):
        (reason, *_) = [*str(error).splitlines(), ""]
        advice = "Take smaller images, batches or networks."
        return _say(errors, f"Out of memory. {advice} {reason}", FAILED)
    if not _is_ours(error):
        raise error  # a defect, here or in the user's code: the traceback is what helps
    from gradflow.training.images import BadFiles

    # A wrong argument is a matter of usage; what goes wrong later is a failed run.
    is_usage = isinstance(error, ValueError) and not isinstance(error, BadFiles)
    return _say(errors, error, USAGE if is_usage else FAILED)


def _lacks_memory(error: Exception) -> bool:
    """Of Python and NumPy, of PyTorch on a CPU, and on a GPU."""
    return (
        isinstance(error, MemoryError)
        or "allocate memory" in str(error)
        or type(error).__name__ == "OutOfMemoryError"
    )


def _is_ours(error: Exception) -> bool:
    """Whether gradflow raised it, in words meant for the user."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return str(module).split(".")[0] == "gradflow"


def _say(console: Console, message: object, code: int) -> int:
    """Print it, the middle of a long one left out: it may quote what somebody gave."""
    text = str(message)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    console.print(f"gradflow: {text}", highlight=False, soft_wrap=True)
    return code
