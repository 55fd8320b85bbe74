"""The compiled sums: kernel.cpp, built once per machine with the C++ compiler that is there."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gradflow.record import kernel_cache

SOURCE = Path(__file__).with_name("kernel.cpp")
LONGEST_COMPILE = 120  # seconds
LONGEST_MESSAGE = 200  # characters of what a compiler says, in the log

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_SIGNATURES = {
    "gradflow_output": [
        _INT, _POINTER, _LONG, _LONG, _LONG, _INT, _INT, _POINTER, _POINTER
    ],
    "gradflow_gradient": [_INT, _POINTER, _LONG, _INT, _POINTER],
    "gradflow_exponents": [_INT, _POINTER, _LONG, _INT, _POINTER],
    "gradflow_products": [_POINTER, _LONG, _INT, _POINTER],
    "gradflow_differences": [_POINTER, _LONG, _INT, _POINTER],
    "gradflow_squares": [_POINTER, _LONG, _INT, _POINTER],
    "gradflow_adam": [_POINTER, _LONG, _INT, _POINTER],
}  # fmt: skip

_log = logging.getLogger("gradflow")


class Pair(NamedTuple):
    """Two tensors of one type, dense in memory in one order; a kernel writes `copy` in it too."""

    x: Tensor
    y: Tensor
    rows: int
    copy: Tensor | None


class AdamMoments(ctypes.Structure):
    """`Moments` of kernel.cpp."""

    _fields_ = (
        ("is_bfloat16", _LONG),
        ("first", _POINTER),
        ("second", _POINTER),
        ("n", _LONG),
        ("first_scale", ctypes.c_double),
        ("root_scale", ctypes.c_double),
        ("epsilon", ctypes.c_double),
    )


def for_tensor(x: Tensor) -> ctypes.CDLL | None:
    """The kernel if it reads such a tensor: one of its types, in this machine's memory."""
    if x.is_cpu and (x.dtype == torch.float32 or x.dtype == torch.bfloat16):
        return library()
    return None


@cache
def library() -> ctypes.CDLL | None:
    """The kernel, compiled if it was not yet; None where that fails or GRADFLOW_KERNEL=0.

    Where it is kept, and what is not loaded, says kernel_cache.py.
    """
    compiler = _compiler()
    if os.environ.get("GRADFLOW_KERNEL") == "0" or compiler is None:
        _log.info("gradflow takes its sums with PyTorch: no C++ compiler, or GRADFLOW_KERNEL=0.")
        return None
    try:
        return _found_or_built(compiler)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _log.warning("gradflow takes its sums with PyTorch, since its kernel failed: %s", error)
        return None


def _compiler() -> str | None:
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _found_or_built(compiler: str) -> ctypes.CDLL:
    options = [
        "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC",
        *_openmp(compiler),
    ]  # fmt: skip
    key = _key(compiler, options)
    folder = kernel_cache.private_folder(key)
    kept = kernel_cache.find(folder, key)
    if kept is not None:
        return _load(kept)
    with kernel_cache.building(folder, key) as room:
        built = room / "kernel.so"
        _compile([compiler, *options, str(SOURCE), "-o", str(built)], room)
        loaded = _load(built)  # what cannot be loaded is not kept
        kernel_cache.keep(folder, key, built)
    return loaded


def _key(compiler: str, options: list[str]) -> str:
    """Names the library of this source, compiler and processor."""
    binary = Path(compiler).stat()  # a new version is another compiler
    facts = [
        SOURCE.read_text(encoding="utf-8"), compiler, f"{binary.st_size} {binary.st_mtime_ns}",
        *options, platform.machine(), _cpu(),
    ]  # fmt: skip
    return f"kernel-{hashlib.sha256('|'.join(facts).encode()).hexdigest()[:16]}"


def _compile(command: list[str], room: Path) -> None:
    """Run the compiler, which leaves nothing outside of `room`, however it ends."""
    environment = {**os.environ, "TMPDIR": str(room)}
    with (room / "messages").open("wb") as messages:
        process = subprocess.Popen(
            command, stdout=messages, stderr=messages, env=environment, start_new_session=True
        )
        try:
            code = process.wait(LONGEST_COMPILE)
        except BaseException:  # also Ctrl-C: the compiler's own children go with it
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code != 0:
        said = (room / "messages").read_text(encoding="utf-8", errors="replace").strip()
        raise OSError(f"{command[0]} ended with {code}: {said[:LONGEST_MESSAGE]}")


def _openmp(compiler: str) -> list[str]:
    """Threads only from the OpenMP runtime that PyTorch has loaded: two would fight for cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or b"libgomp" not in maps.read_bytes():
        return []
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=30)
    return ["-fopenmp"] if b"Free Software Foundation" in version.stdout else []


def _cpu() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text(encoding="utf-8").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded
