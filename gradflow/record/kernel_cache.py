"""Where compiled libraries are kept: in a folder of the user's own, whole, under their checksum.

Who may write a library runs code in every process that loads it. So nothing is taken from a folder
or file that another user owns or may write, as the cache may be where `HOME=/tmp`.
"""

import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHECKSUM = 32  # hexadecimal digits of SHA-256 in a library's name
# Seconds after which a build that failed is tried again: a disk may have been full, or the machine
# too busy for the time limit.
FORGIVEN_AFTER = 24 * 3600

_log = logging.getLogger("gradflow")


class Unsafe(OSError):
    """A folder or file that another user owns or may write, or that this one may not."""


class FailedBefore(OSError):
    """The build that is asked for has failed in another process."""


def private_folder(key: str) -> Path:
    """The first folder that is this user's alone, made where it is missing. Raises Unsafe.

    It can be written to, or holds the library of this key already.

    `$XDG_CACHE_HOME/gradflow` or `~/.cache/gradflow`; else one in the folder for temporary files.
    """
    reasons = []
    for folder in _candidates():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = folder.resolve()
            _check_nobody_else_writes(folder)
            if not (os.access(folder, os.W_OK) or find(folder, key)):
                raise Unsafe(f"{folder} cannot be written to")
        except OSError as error:
            reasons.append(str(error))
            continue
        if reasons:
            _log.warning("gradflow keeps its kernel in %s, since %s.", folder, "; ".join(reasons))
        return folder
    raise Unsafe("no folder to keep it in: " + "; ".join(reasons))


def _candidates() -> Iterator[Path]:
    with suppress(RuntimeError):  # a user without a home, as in some containers
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradflow"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    yield Path(tempfile.gettempdir()) / f"gradflow-{user}"


def find(folder: Path, key: str) -> Path | None:
    """The library of this key, as it was kept. One that is damaged or not safe is removed."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        with suppress(Unsafe):
            _check_owner(path, path.lstat())
            if path.stem == f"{key}-{_checksum(path)}":
                return path
        path.unlink(missing_ok=True)
    return None


def keep(folder: Path, key: str, built: Path) -> Path:
    """Move a library that was built in `folder` to its place, whole or not at all."""
    built.chmod(0o700)
    return built.replace(folder / f"{key}-{_checksum(built)}.so")


@contextmanager
def building(folder: Path, key: str) -> Iterator[Path]:
    """A private folder to build in, which is gone afterwards; remembers that the build failed.

    Raises FailedBefore where it did so within the last day.
    """
    marker = folder / f"{key}.failed"
    if marker.exists() and time.time() - marker.stat().st_mtime < FORGIVEN_AFTER:
        raise FailedBefore(f"it failed before; remove {marker} to try again")
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as room:
        try:
            yield Path(room)
        except Exception as error:
            marker.write_text(f"{error}\n", encoding="utf-8")
            raise
    marker.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:CHECKSUM]


def _check_nobody_else_writes(folder: Path) -> None:
    """Who may write in a folder above may put another in its place, unless that one is sticky."""
    _check_owner(folder, folder.stat())
    for above in folder.parents:
        facts = above.stat()
        if not facts.st_mode & stat.S_ISVTX:
            _check_owner(above, facts, or_root=True)


def _check_owner(path: Path, facts: os.stat_result, *, or_root: bool = False) -> None:
    if not hasattr(os, "getuid"):  # Windows, where a profile is its user's alone
        return
    # In a container root may stand under another number.
    owners = {os.getuid(), *([0, Path("/").stat().st_uid] if or_root else [])}
    if stat.S_ISLNK(facts.st_mode) or facts.st_uid not in owners:
        raise Unsafe(f"{path} belongs to another user")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unsafe(f"others may write {path}: chmod go-w")
