"""The compiled sums: kernel.cpp, built once per machine with the C++ compiler that is there."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernel.cpp")

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_SIGNATURES = {
    "gradflow_output": [
        _INT, _POINTER, _LONG, _LONG, _LONG, _INT, _INT, _POINTER, _POINTER
    ],
    "gradflow_gradient": [_INT, _POINTER, _LONG, _INT, _POINTER],
    "gradflow_products": [_POINTER, _LONG, _INT, _POINTER],
    "gradflow_differences": [_POINTER, _LONG, _INT, _POINTER],
}  # fmt: skip

_log = logging.getLogger("gradflow")


def for_tensor(x: Tensor) -> ctypes.CDLL | None:
    """The kernel if it reads such a tensor: one of its types, in this machine's memory."""
    if x.is_cpu and (x.dtype == torch.float32 or x.dtype == torch.bfloat16):
        return library()
    return None


@cache
def library() -> ctypes.CDLL | None:
    """The kernel, compiled if it was not yet; None where that fails or GRADFLOW_KERNEL=0.

    It lies in `$XDG_CACHE_HOME/gradflow`, else in `~/.cache/gradflow`, under a name that tells
    the source, the compiler and the processor.
    """
    compiler = _compiler()
    if os.environ.get("GRADFLOW_KERNEL") == "0" or compiler is None:
        _log.info("gradflow takes its sums with PyTorch: no C++ compiler, or GRADFLOW_KERNEL=0.")
        return None
    try:
        return _load(_built(compiler))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _log.warning("gradflow takes its sums with PyTorch, since its kernel failed: %s", error)
        return None


def _compiler() -> str | None:
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _built(compiler: str) -> Path:
    """The shared library in the cache, or compiled into it."""
    options = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", *_openmp(compiler)]
    facts = [SOURCE.read_text(encoding="utf-8"), compiler, *options, platform.machine(), _cpu()]
    name = f"kernel-{hashlib.sha256('|'.join(facts).encode()).hexdigest()[:16]}.so"
    path = _cache_folder() / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / name
            subprocess.run(
                [compiler, *options, str(SOURCE), "-o", str(fresh)],
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
            fresh.replace(path)  # whole or not at all, also when two processes compile
    return path


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


def _cache_folder() -> Path:
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "gradflow"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that cannot be written to, or none
        return Path(tempfile.mkdtemp(prefix="gradflow-"))
    return folder


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded
