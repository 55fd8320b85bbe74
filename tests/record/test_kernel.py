"""The compiled kernel: built once, found again, and done without where it cannot be had."""

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradflow.record import kernel, kernel_cache
from gradflow.record.sums import gradient_sums

build = kernel.library.__wrapped__  # without the cache of the process


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(kernel_cache.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("GRADFLOW_KERNEL", raising=False)
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes `CXX` a script that notes that it was called and runs some shell."""

    def make(script: str) -> Path:
        calls = tmp_path / "calls"
        path = tmp_path / "compiler"
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho >> {calls}\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        return calls

    return make


def cached(tmp_path: Path) -> list[str]:
    """What lies in the cache, and in the folder for temporary files."""
    folders = tmp_path / "cache", tmp_path / "temporary"
    return sorted(path.name for folder in folders for path in folder.rglob("*"))


def n_calls(calls: Path) -> int:
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def real_compiler() -> str:
    path = kernel._compiler()
    if path is None:
        pytest.skip("no C++ compiler on this machine")
    return path


def assert_sums_are_taken_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "library", lambda: None)
    assert gradient_sums(torch.tensor([3.0, 4.0])).tolist() == [25, 0]


def test_the_environment_switches_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRADFLOW_KERNEL", "0")
    with caplog.at_level(logging.WARNING, "gradflow"):
        assert build() is None
    assert not caplog.records, "it is what the user asked for"
    assert cached(tmp_path) == []


def test_without_a_compiler_pytorch_takes_the_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING, "gradflow"):
        assert build() is None
    assert not caplog.records
    assert cached(tmp_path) == []
    assert_sums_are_taken_by_pytorch(monkeypatch)


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "echo half > $(eval echo \\${$#}); exit 1",
        "printf '\\377\\376' >&2; exit 1",
        "exit 0",
        'for last; do :; done; echo "no library" > "$last"; exit 0',
    ],
    ids=["fails", "fails-half-way", "fails-in-latin-1", "writes-nothing", "writes-nonsense"],
)
def test_a_compiler_that_fails_is_told_and_done_without(
    script: str,
    tmp_path: Path,
    compiler: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever it does, training goes on, and nothing half-built is found by the next process."""
    calls = compiler(script)
    kernel.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "gradflow"):
            for _ in range(3):
                assert kernel.library() is None
                assert gradient_sums(torch.tensor([3.0, 4.0])).tolist() == [25, 0]
    finally:
        kernel.library.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once"
    assert "gradflow takes its sums with PyTorch, since its kernel failed" in caplog.text
    assert n_calls(calls) == 1
    folder, marker = cached(tmp_path)
    assert (folder, marker.endswith(".failed")) == ("gradflow", True), "no partial file"
    assert build() is None
    assert n_calls(calls) == 1, "the next process does not try again"
    assert f"remove {tmp_path / 'cache' / 'gradflow' / marker} to try again" in caplog.text


def test_it_is_compiled_once_and_found_again(
    tmp_path: Path, compiler: Callable[[str], Path]
) -> None:
    """The second process, and every one after it, does not wait for a compiler."""
    calls = compiler(f'exec {real_compiler()} "$@"')
    assert build() is not None
    assert n_calls(calls) == 1
    assert len(cached(tmp_path)) == 2, "the folder and one library, no partial file"
    assert cached(tmp_path)[1].endswith(".so")
    assert build() is not None
    assert n_calls(calls) == 1


def test_another_source_or_compiler_is_another_library(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel of an older gradflow, whose sums mean something else, must not be loaded."""
    compiler("exit 0")
    cxx = os.environ["CXX"]
    keys = [kernel._key(cxx, ["-O3"]), kernel._key(cxx, ["-O2"])]
    source = tmp_path / "kernel.cpp"
    source.write_text(kernel.SOURCE.read_text() + "\n")
    monkeypatch.setattr(kernel, "SOURCE", source)
    keys.append(kernel._key(cxx, ["-O3"]))
    monkeypatch.setattr(kernel, "_cpu", lambda: "another")
    keys.append(kernel._key(cxx, ["-O3"]))
    keys.append(kernel._key(str(shutil.copy(cxx, tmp_path / "other")), ["-O3"]))
    os.utime(cxx, (0, 0))  # a new version in the place of the old
    keys.append(kernel._key(cxx, ["-O3"]))
    assert len(set(keys)) == len(keys)


@pytest.fixture
def empty_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its source: a kernel that takes no time to compile."""
    source = tmp_path / "empty.cpp"
    names = " ".join(f"void {name}() {{}}" for name in kernel._SIGNATURES)
    source.write_text(f'extern "C" {{ {names} }}\n')
    monkeypatch.setattr(kernel, "SOURCE", source)
    return source


def the_library(tmp_path: Path) -> Path:
    (path,) = tmp_path.rglob("kernel-*.so")
    return path


@pytest.mark.usefixtures("empty_library")
@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty"])
def test_a_damaged_library_is_built_again(
    damage: str, tmp_path: Path, compiler: Callable[[str], Path]
) -> None:
    """A library that was cut off kills the process that loads it with a bus error."""
    calls = compiler(f'exec {real_compiler()} "$@"')
    assert build() is not None
    path = the_library(tmp_path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "cut off": whole[:middle],
        "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
    }[damage]
    path.unlink()  # it is mapped into this process
    path.write_bytes(damaged)
    path.chmod(0o700)
    assert build() is not None
    assert n_calls(calls) == 2
    assert the_library(tmp_path).read_bytes() != damaged


@pytest.mark.usefixtures("empty_library")
@pytest.mark.parametrize("where", ["folder", "above", "file"])
def test_what_others_may_write_is_not_loaded(
    where: str,
    tmp_path: Path,
    compiler: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who can put a library there runs code in every process that loads it."""
    calls = compiler(f'exec {real_compiler()} "$@"')
    cache = tmp_path / "cache"
    (cache / "gradflow").mkdir(mode=0o700, parents=True)
    if where == "file":
        assert build() is not None
        the_library(tmp_path).chmod(0o777)
    else:
        {"folder": cache / "gradflow", "above": cache}[where].chmod(0o777)
    with caplog.at_level(logging.WARNING, "gradflow"):
        assert build() is not None
        assert build() is not None
    path = the_library(tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    if where == "file":
        assert n_calls(calls) == 2, "it was thrown away and built again"
        assert path.parent == cache / "gradflow"
    else:
        assert n_calls(calls) == 1
        assert path.parent == tmp_path / "temporary" / f"gradflow-{os.getuid()}"
        assert "others may write" in caplog.text


@pytest.mark.usefixtures("empty_library")
def test_what_belongs_to_another_user_is_not_loaded(
    tmp_path: Path,
    compiler: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = compiler("exit 1")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # so that every folder is another's
    with caplog.at_level(logging.WARNING, "gradflow"):
        assert build() is None
    assert n_calls(calls) == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "belongs to another user" in caplog.text


@pytest.mark.usefixtures("empty_library")
def test_a_folder_for_all_may_hold_the_cache_if_it_is_sticky(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HOME=/tmp`: others may make files there, but not move ours away."""
    compiler(f'exec {real_compiler()} "$@"')
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o1777)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build() is not None
    assert the_library(tmp_path).parent == tmp_path / "home" / ".cache" / "gradflow"


@pytest.mark.usefixtures("empty_library")
def test_a_library_is_not_reached_through_a_link(
    tmp_path: Path, compiler: Callable[[str], Path]
) -> None:
    calls = compiler(f'exec {real_compiler()} "$@"')
    assert build() is not None
    path = the_library(tmp_path)
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    assert build() is not None
    assert n_calls(calls) == 2
    assert not the_library(tmp_path).is_symlink()


def test_a_failure_is_forgiven_after_a_day(tmp_path: Path, compiler: Callable[[str], Path]) -> None:
    """The disk may have been full."""
    calls = compiler("exit 1")
    assert build() is None
    (marker,) = tmp_path.rglob("*.failed")
    a_day_ago = time.time() - 24 * 3600 - 1
    os.utime(marker, (a_day_ago, a_day_ago))
    assert build() is None
    assert n_calls(calls) == 2


def test_a_compiler_that_hangs_is_ended_with_its_children(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("echo half > $TMPDIR/half.s; sleep 300.25")
    monkeypatch.setattr(kernel, "LONGEST_COMPILE", 0.2)
    assert build() is None
    assert all(name == "gradflow" or name.endswith(".failed") for name in cached(tmp_path))
    running = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True).stdout
    lines = [line for line in running.splitlines() if "sleep 300.25" in line]
    assert all(line.startswith("Z") for line in lines)


@pytest.mark.usefixtures("empty_library")
@pytest.mark.parametrize("home", ["none", "a file"])
def test_without_a_home_the_folder_for_temporary_files_is_used(
    home: str, tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container a process may run under a number that no user has."""
    calls = compiler(f'exec {real_compiler()} "$@"')

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    if home == "none":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build() is not None
    assert build() is not None
    assert n_calls(calls) == 1
    assert the_library(tmp_path).parent.parent == tmp_path / "temporary"


def test_it_reads_float32_and_bfloat16_in_this_machines_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "library", lambda: "the kernel")
    every = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int32)
    reads = [dtype for dtype in every if kernel.for_tensor(torch.ones(1, dtype=dtype))]
    assert reads == [torch.float32, torch.bfloat16]
    assert kernel.for_tensor(torch.ones(1, device="meta")) is None
