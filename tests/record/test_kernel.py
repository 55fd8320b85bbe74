"""The compiled kernel: built once, found again, and done without where it cannot be had."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gradflow.record import kernel, kernel_cache
from gradflow.record.sums import gradient_sums

build = kernel.library.__wrapped__  # without the cache of the process


class Machine:
    """A home, a folder for temporary files and a compiler that counts its calls."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.home, self.temporary = root, root / "cache", root / "temporary"
        self._monkeypatch, self._calls = monkeypatch, root / "calls"
        self.temporary.mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.home))
        monkeypatch.setattr(kernel_cache.tempfile, "tempdir", str(self.temporary))
        monkeypatch.delenv("GRADFLOW_KERNEL", raising=False)

    def compile_by(self, script: str) -> str:
        """Some shell instead of a compiler."""
        path = self.root / "compiler"
        note = f'[ "$1" = --version ] && exit 0\necho >> {self._calls}'
        path.write_text(f"#!/bin/sh\n{note}\n{script}\n")
        path.chmod(0o755)
        self._monkeypatch.setenv("CXX", str(path))
        return str(path)

    def compile_really(self, is_empty: bool = True) -> None:
        """With the machine's compiler; an empty kernel takes no time."""
        self._monkeypatch.delenv("CXX", raising=False)
        if kernel._compiler() is None:
            pytest.skip("no C++ compiler on this machine")
        self.compile_by(f'exec {kernel._compiler()} "$@"')
        if is_empty:
            names = " ".join(f"void {name}() {{}}" for name in kernel._SIGNATURES)
            source = self.root / "empty.cpp"
            source.write_text(f'extern "C" {{ {names} }}\n')
            self._monkeypatch.setattr(kernel, "SOURCE", source)

    @property
    def n_calls(self) -> int:
        return len(self._calls.read_text().splitlines()) if self._calls.exists() else 0

    def kept(self) -> list[str]:
        """What lies in the cache, and in the folder for temporary files."""
        folders = self.home, self.temporary
        return sorted(path.name for folder in folders for path in folder.rglob("*"))

    def library(self) -> Path:
        (path,) = self.root.rglob("kernel-*.so")
        return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "environment", [{"GRADFLOW_KERNEL": "0"}, {"PATH": "/nowhere", "CXX": "no-such-compiler"}]
)
def test_switched_off_or_without_a_compiler_pytorch_takes_the_sums(
    environment: dict[str, str], machine: Machine, monkeypatch: Any, caplog: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert build() is None
    assert not caplog.records, "it is what the user asked for, or has"
    assert machine.kept() == []
    monkeypatch.setattr(kernel, "library", lambda: None)
    assert gradient_sums(torch.tensor([3.0, 4.0])).tolist() == [25, 0]


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
    script: str, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it does, training goes on, and nothing half-built is found by the next process."""
    machine.compile_by(script)
    kernel.library.cache_clear()
    try:
        for _ in range(3):
            assert kernel.library() is None
            assert gradient_sums(torch.tensor([3.0, 4.0])).tolist() == [25, 0]
    finally:
        kernel.library.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once"
    assert "gradflow takes its sums with PyTorch, since its kernel failed" in caplog.text
    assert machine.n_calls == 1
    folder, marker = machine.kept()
    assert (folder, marker.endswith(".failed")) == ("gradflow", True), "no partial file"
    assert build() is None
    assert machine.n_calls == 1, "the next process does not try again"
    marker = machine.home / "gradflow" / marker
    assert f"remove {marker} to try again" in caplog.text
    a_day_ago = time.time() - 24 * 3600 - 1  # the disk may have been full
    os.utime(marker, (a_day_ago, a_day_ago))
    assert build() is None
    assert machine.n_calls == 2, "a failure is forgiven after a day"


def test_it_is_compiled_once_and_found_again(machine: Machine) -> None:
    """The second process, and every one after it, does not wait for a compiler."""
    machine.compile_really(is_empty=False)
    for _ in range(2):
        assert build() is not None
        assert machine.n_calls == 1
    assert len(machine.kept()) == 2, "the folder and one library, no partial file"
    assert machine.kept()[1].endswith(".so")


def test_another_source_or_compiler_is_another_library(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel of an older gradflow, whose sums mean something else, must not be loaded."""
    cxx = machine.compile_by("exit 0")
    keys = [kernel._key(cxx, ["-O3"]), kernel._key(cxx, ["-O2"])]
    source = machine.root / "kernel.cpp"
    source.write_text(kernel.SOURCE.read_text() + "\n")
    monkeypatch.setattr(kernel, "SOURCE", source)
    keys.append(kernel._key(cxx, ["-O3"]))
    monkeypatch.setattr(kernel, "_cpu", lambda: "another")
    keys.append(kernel._key(cxx, ["-O3"]))
    keys.append(kernel._key(str(shutil.copy(cxx, machine.root / "other")), ["-O3"]))
    os.utime(cxx, (0, 0))  # a new version in the place of the old
    keys.append(kernel._key(cxx, ["-O3"]))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty", "may be written", "a link"])
def test_a_library_that_is_damaged_or_not_safe_is_built_again(
    damage: str, machine: Machine
) -> None:
    """One that was cut off kills the process that loads it with a bus error; who can put one there
    runs code in every process that loads it.
    """
    machine.compile_really()
    assert build() is not None
    path = machine.library()
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "cut off": whole[:middle],
        "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
    }.get(damage)
    if damage == "a link":
        path.symlink_to(path.rename(machine.root / "elsewhere"))
    elif damaged is not None:
        path.unlink()  # it is mapped into this process
        path.write_bytes(damaged)
    if damage != "a link":
        path.chmod(0o777 if damage == "may be written" else 0o700)
    assert build() is not None
    assert machine.n_calls == 2
    path = machine.library()
    assert not path.is_symlink()
    assert path.read_bytes() != damaged
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent == machine.home / "gradflow"


@pytest.mark.parametrize("folder", ["cache", "cache/gradflow"])
def test_a_folder_in_which_others_may_write_is_not_used(
    folder: str, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.compile_really()
    (machine.home / "gradflow").mkdir(mode=0o700, parents=True)
    (machine.root / folder).chmod(0o777)
    for _ in range(2):
        assert build() is not None
    assert machine.n_calls == 1
    path = machine.library()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent == machine.temporary / f"gradflow-{os.getuid()}"
    assert "others may write" in caplog.text


def test_what_belongs_to_another_user_is_not_loaded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine.compile_by("exit 1")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # so that every folder is another's
    assert build() is None
    assert machine.n_calls == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "belongs to another user" in caplog.text


@pytest.mark.parametrize("home", ["sticky", "none", "a file"])
def test_a_home_of_another_kind(
    home: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HOME=/tmp`, which is sticky: others may make files there, but not move ours away. In a
    container a process may run under a number that no user has.
    """
    machine.compile_really()

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    path = machine.root / "home"
    if home == "a file":
        path.touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    else:
        path.mkdir()
        path.chmod(0o1777)
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home if home == "none" else lambda: path)
    for _ in range(2):
        assert build() is not None
    assert machine.n_calls == 1
    want = path / ".cache" if home == "sticky" else machine.temporary
    assert machine.library().parent.parent == want


def test_a_compiler_that_hangs_is_ended_with_its_children(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.compile_by("echo half > $TMPDIR/half.s; sleep 300.25")
    monkeypatch.setattr(kernel, "LONGEST_COMPILE", 0.2)
    assert build() is None
    assert all(name == "gradflow" or name.endswith(".failed") for name in machine.kept())
    running = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True).stdout
    lines = [line for line in running.splitlines() if "sleep 300.25" in line]
    assert all(line.startswith("Z") for line in lines)


def test_it_reads_float32_and_bfloat16_in_this_machines_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "library", lambda: "the kernel")
    every = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int32)
    reads = [dtype for dtype in every if kernel.for_tensor(torch.ones(1, dtype=dtype))]
    assert reads == [torch.float32, torch.bfloat16]
    assert kernel.for_tensor(torch.ones(1, device="meta")) is None
