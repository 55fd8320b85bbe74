"""The compiled kernel: built once, found again, and done without where it cannot be had."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradflow.record import kernel
from gradflow.record.sums import gradient_sums

build = kernel.library.__wrapped__  # without the cache of the process


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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
    return sorted(path.name for path in (tmp_path / "cache").rglob("*"))


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
    if "no library" not in script:
        assert cached(tmp_path) == ["gradflow"], "no partial file"


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
    calls = compiler('for last; do :; done; echo > "$last"')
    first = kernel._built(os.environ["CXX"])
    source = tmp_path / "kernel.cpp"
    source.write_text(kernel.SOURCE.read_text() + "\n")
    monkeypatch.setattr(kernel, "SOURCE", source)
    second = kernel._built(os.environ["CXX"])
    monkeypatch.setattr(kernel, "_cpu", lambda: "another")
    third = kernel._built(os.environ["CXX"])
    other = shutil.copy(os.environ["CXX"], tmp_path / "other")
    fourth = kernel._built(str(other))
    assert len({first, second, third, fourth}) == 4
    assert n_calls(calls) == 4


def test_a_user_without_a_home_has_a_kernel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container a process may run under a number that no user has."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    folder = kernel._cache_folder()
    assert folder.is_dir()
    folder.rmdir()


def test_a_cache_that_cannot_be_made_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = kernel._cache_folder()
    assert tmp_path not in folder.parents
    folder.rmdir()


def test_it_reads_float32_and_bfloat16_in_this_machines_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "library", lambda: "the kernel")
    every = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int32)
    reads = [dtype for dtype in every if kernel.for_tensor(torch.ones(1, dtype=dtype))]
    assert reads == [torch.float32, torch.bfloat16]
    assert kernel.for_tensor(torch.ones(1, device="meta")) is None
