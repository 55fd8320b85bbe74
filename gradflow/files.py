"""Files: read with one kind of error, written whole or not at all, by one process at a time.

A run may come from somebody else, a disk may fill, and a process may be killed at any moment.
"""

import json
import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from gradflow.typed import typed

UNFINISHED = ".unfinished-"  # begins the names of files that are being written
# The file that this thread decodes, for what a decoder warns of without naming it.
decoding: ContextVar[str] = ContextVar("decoding", default="")
LARGEST_INTEGER = 18  # digits: int64, and more than any count here


class DamagedFile(ValueError):
    """A file that does not hold what it must: what was expected, what came, and what to do."""

    def __init__(self, path: Path, expected: str, came: object, advice: str) -> None:
        reason = " ".join(str(came).split())[:300] or type(came).__name__
        reason = reason.rstrip(".")
        super().__init__(f"Expected {expected} in {path}, but it holds none: {reason}. {advice}")
        self.path = path


def refuse_no_file(path: Path, expected: str, advice: str) -> None:
    """Refuse a folder, and a pipe or a device, which may never end: DamagedFile."""
    if path.exists() and not path.is_file():
        raise DamagedFile(path, expected, "it is a folder, a pipe or a device", advice)


def read_text(path: Path, expected: str, advice: str) -> str:
    """What a text file holds. Raises FileNotFoundError, DamagedFile."""
    refuse_no_file(path, expected, advice)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(path, expected, error, advice) from None


def read_json(path: Path, hint: Any, expected: str, advice: str) -> Any:
    """What a JSON file holds, checked against the type `hint`; see `typed`.

    Raises FileNotFoundError where there is no file, DamagedFile where it holds something else.
    """
    try:
        text = read_text(path, expected, advice)
        return typed(json.loads(text, parse_int=_integer), hint, "it")
    except DamagedFile:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, expected, error, advice) from None


def _integer(text: str) -> int:
    if len(text) > LARGEST_INTEGER:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def read_yaml(path: Path, expected: str, advice: str) -> tuple[Any, dict[str, int]]:
    """What a YAML file holds, and of a mapping the line of each key. Errors as `read_json`."""
    import yaml

    try:
        loader = _loader()(read_text(path, expected, advice))
        try:
            node = loader.get_single_node()
            content = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ValueError(f"`{name}` is given in line {lines[name]} and in line {line}")
            lines[name] = line
        return content, lines
    except DamagedFile:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # What PyYAML says names the line.
        raise DamagedFile(path, expected, error, advice) from None


# What of YAML's bare words is no text: the core of YAML 1.2. PyYAML's own is 1.1, to which `off` is
# false, 010 is eight, 1:30 is ninety, and 1e-3 is text.
_BARE = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?([0-9]*\.[0-9]+|[0-9]+\.)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|"
    r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "null": r"|~|null|Null|NULL",
    "merge": r"<<",
}


@cache
def _loader() -> Any:
    import yaml

    # A study reads hundreds of configurations, and libyaml reads ten times as fast.
    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return _knows_bare(type("Loader", (base,), {"yaml_implicit_resolvers": {}}))


@cache
def _dumper() -> Any:
    import yaml

    return _knows_bare(type("Dumper", (yaml.SafeDumper,), {}))  # text that looks so gets quotes


def _knows_bare(kind: Any) -> Any:
    for tag, pattern in _BARE.items():
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^({pattern})$"), None)
    return kind


def yaml_text(content: Any) -> str:
    """YAML that `read_yaml` reads; PyYAML's own loader reads the same from it."""
    import yaml

    return str(yaml.dump(content, Dumper=_dumper(), sort_keys=False, allow_unicode=True))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A fresh file to write, which then takes the place of `path`; after an error there is none.

    A link that stands at `path` is replaced, not followed.
    """
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}{path.suffix}")
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, all or nothing."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, all or nothing; with an escape, as in JSON, for a byte that was no UTF-8."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def refuse_links(folder: Path) -> None:
    """Refuse a folder in which another one is a link: what is written there would land elsewhere.

    Looks two deep, which is where a run and a study have folders; W&B makes links in its own.
    Raises ValueError.
    """
    for path in (folder, *folder.iterdir()):
        if path.name == "wandb" and not path.is_symlink():
            continue
        for one in path.iterdir() if path.is_dir() else ():
            if one.is_symlink() and one.is_dir():
                raise ValueError(
                    f"Expected a folder at {one}, but it is a link to {one.resolve()}, and "
                    "gradflow writes nothing through a link. Remove it."
                )


def drop_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[str]:
    """Hold `folder` for this process alone: one run, one writer.

    Yields a note where the process that held it before ended without letting it go, else "". The
    operating system takes the lock from a dead process; who holds it stands in the file. With
    `wait` waits for another process; else raises RuntimeError, which names it.
    """
    from filelock import FileLock, Timeout

    path = folder / ".lock"
    if path.is_symlink() or path.is_fifo():
        path.unlink()
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"Expected {folder} for this process alone, but {_holder(path) or 'another process'} "
            "is using it. Wait for it, or choose another folder."
        ) from None
    try:
        if before := _holder(path):
            drop_unfinished(folder)
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield f"{before} had {folder} and ended without letting it go." if before else ""
    finally:
        if path.exists():  # else the folder vanished
            path.write_text("", encoding="utf-8")
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:200].strip()
    except (OSError, UnicodeDecodeError):
        return ""
