"""The Triton kernels against float64 NumPy: in Triton's interpreter, and on a CUDA device.

Triton decides when it is imported whether it interprets, so this file is also a program: it runs
the cases, or compiles the kernels, in a process of its own and prints a line of JSON.
"""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sums import EXAMPLES, assert_sums_of_one, assert_sums_of_pairs, in_layout
from torch import Tensor

from gradflow.record import kernel, memory, sums
from gradflow.record.sums import difference_sums, gradient_sums, output_sums, product_sums

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

# -- cases -------------------------------------------------------------------------------------

SPECIAL = {
    "normal": (),
    "mixed": (1.0, -2.0, 1e-25, 1e30, np.nan),
    "half": (-1.0, 1e-25),  # the squares of max(z, 0) underflow, those of z do not
    "zeros": (0.0, -0.0),
    "denormal": (1e-41, -1e-41, 1e-22),
    "tiny": (1e-25, -1e-30),
    "huge": (1e30, -3e30),
    "nan": (np.nan, 0.0),
    "inf": (np.inf, -np.inf, 1e30),
}
SHAPES = (
    (1,), (4097,), (3, 5), (40, 100), (5, 1), (70, 1, 3), (9, 2000), (2, 70, 33), (1, 1, 70, 70),
    (7, 33, 5, 6), (2, 3, 2, 3, 3),
)  # fmt: skip
LAYOUTS = ("contiguous", "channels_last", "offset", "transposed", "expanded")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def values(shape: tuple[int, ...], special: tuple[float, ...], seed: int) -> Tensor:
    """Nothing but special ones where there are any: beside others their sums would not count."""
    random = np.random.default_rng(seed)
    return torch.tensor(random.choice(special, shape) if special else random.standard_normal(shape))


def check(shape: tuple[int, ...], dtype: torch.dtype, layout: str, special: str) -> None:
    """All sums of two such tensors."""
    x, y = (in_layout(values(shape, SPECIAL[special], seed).to(dtype), layout) for seed in (0, 1))
    assert_sums_of_one(x, min(1, x.dim() - 1))
    assert_sums_of_pairs([x], [y], with_copies=True)


def check_many() -> None:
    """Pairs of all types and lengths in one call: each is summed in its place, and copied."""
    shapes = [(5,), (3, 9), (2, 130), (1,), (0,), (300, 16), (70, 40), (5000,), ()]
    xs, ys = (
        [values(shapes[i % 9], (), seed + i).to(DTYPES[i % 4]) for i in range(18)]
        for seed in (0, 18)
    )
    assert_sums_of_pairs(xs, ys, with_copies=True)


CASES: dict[str, Callable[[], None]] = {
    "many": check_many, **{one.__name__: one for one in EXAMPLES}
}  # fmt: skip


def add_case(shape: tuple[int, ...], dtype: torch.dtype, layout: str, special: str) -> None:
    name = f"{'x'.join(map(str, shape))} {dtype} {layout} {special}".replace("torch.", "")
    CASES[name] = partial(check, shape, dtype, layout, special)


for i, one_shape in enumerate(SHAPES):
    add_case(one_shape, DTYPES[i % 4], "contiguous", "normal")
for i, one_special in enumerate(SPECIAL):
    add_case((7, 33, 5, 6), torch.float32, LAYOUTS[i % 2], one_special)
    add_case((3, 40), DTYPES[i % 3], "contiguous", one_special)
for one_layout in LAYOUTS[1:]:
    add_case((7, 33, 5, 6), torch.float32, one_layout, "normal")


# -- in a process of its own -------------------------------------------------------------------


def interpret(names: list[str]) -> dict[str, str]:
    """What went wrong, case by case."""
    assert "triton" not in sys.modules, "import gradflow should not import Triton"
    from gradflow.record import triton_kernel

    warnings.simplefilter("ignore")  # NumPy's, where float32 overflows
    sums._triton_for = lambda xs: triton_kernel if xs and not triton_kernel._State.is_off else None
    as_real = memory.as_real  # on a CUDA device it leaves float16 as it is
    memory.as_real = sums.as_real = lambda x: x if x.dtype == torch.float16 else as_real(x)
    last = {"shared": lambda: check_shared(triton_kernel),
            "fails": lambda: check_failure(triton_kernel)}  # fmt: skip
    return {name: failure(case) for name, case in (CASES | last).items() if name in names}


def failure(case: Callable[[], None]) -> str:
    from gradflow.record import triton_kernel

    try:
        case()
        assert not triton_kernel._State.is_off, "PyTorch took the sums"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check_shared(triton_kernel: Any) -> None:
    """Fewer programs than tiles, and more pairs or programs than are looked at at once."""
    import triton.language as tl

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernel, "PROGRAMS", 2)
        patch.setattr(triton_kernel, "PROGRAMS_PER_PAIR", 2)
        patch.setattr(triton_kernel.device, "SEARCHED", tl.constexpr(16))
        patch.setattr(triton_kernel.device, "ADDED", tl.constexpr(2))
        for layout in ("contiguous", "channels_last"):
            check((3, 20, 25, 9), torch.float32, layout, "normal")
        check((1, 2, 70, 50), torch.float32, "contiguous", "nan")
        check((9000,), torch.float32, "contiguous", "huge")
        check_many()
        patch.setattr(triton_kernel, "PROGRAMS", 5)  # which are not added up at once
        check((9, 2000), torch.float32, "contiguous", "normal")


def check_failure(triton_kernel: Any) -> None:
    """A kernel that cannot be launched is told once, and done without; copies are made."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("gradflow").addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernel._State, "is_off", False)
        patch.setattr(triton_kernel.device, "products", None)
        patch.setattr(kernel, "library", lambda: None)
        for dtype in (torch.float32, torch.complex64):
            x = torch.tensor([3.0, 4.0], dtype=dtype)
            copy = torch.zeros_like(x)
            assert product_sums([x], [x], [copy])[0, 0].item() == 25
            assert torch.equal(copy, x)
        assert triton_kernel._State.is_off
    assert [record.levelname for record in records] == ["WARNING"]
    assert "gradflow takes its sums with PyTorch" in records[0].getMessage()


def compile_for_cuda(_: list[str]) -> dict[str, str]:
    """The machine code of each kernel, as text, for a GPU that need not be there."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradflow.record import triton_device as own
    from gradflow.record.triton_kernel import OPTIONS

    pair = {"DTYPE": tl.bfloat16, "BITS": tl.int16, "ALIGNED": True, "ROWS": 2, "COLUMNS": 1024}
    tile = {"RELU": True, "BY_COLUMN": False, "ROWS": 4, "COLUMNS": 1024}
    total = {"SUMS": 12, "WIDTH": 16, "OF_OUTPUT": True, "table": None}
    types = {"x": "*fp32", "partials": "*fp64", "sums": "*fp64", "active": "*u8", "table": "*i64"}
    result = {}
    for function, constants in (
        (own.output, tile), (own.output, tile | {"BY_COLUMN": True}),
        (own.gradient, {"SIZE": 4096}), (own.products, pair), (own.differences, pair),
        (own.combine, total), (own.combine, {"SUMS": 5, "WIDTH": 8, "OF_OUTPUT": False}),
    ):  # fmt: skip
        signature = {
            name: "constexpr" if name in constants else types.get(name, "i32")
            for name in function.arg_names
        }
        source = ASTSource(function, signature, constants)
        compiled = triton.compile(source, GPUTarget("cuda", 80, 32), OPTIONS)
        assert compiled.asm["cubin"]
        result[f"{function.__name__} {len(result)}"] = compiled.asm["ptx"]
    return result


if __name__ == "__main__":
    print(
        json.dumps({"interpret": interpret, "compile": compile_for_cuda}[sys.argv[1]](sys.argv[2:]))
    )
    sys.exit()


# -- without a CUDA device ---------------------------------------------------------------------


def in_own_process(task: str, *names: str, **environment: str) -> dict[str, str]:
    here = Path(__file__)
    root = here.parents[2]
    path = os.pathsep.join([str(root), str(here.parent)])
    done = subprocess.run(
        [sys.executable, str(here), task, *names],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, str] = json.loads(done.stdout)
    return result


# Every kind of value in a small shape; the interpreter is slow at large ones.
FAST = ["fails", *(one for one in CASES if one.startswith(("3x40 ", "check_")))]


@pytest.fixture(scope="module")
def interpreted(request: pytest.FixtureRequest) -> dict[str, str]:
    """All cases that are asked for, in one process."""
    names = [
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "interpreted" in item.fixturenames
    ]
    return in_own_process("interpret", *names, TRITON_INTERPRET="1", GRADFLOW_KERNEL="0")


@needs_triton
@pytest.mark.parametrize(
    "case",
    [pytest.param(one, marks=() if one in FAST else pytest.mark.slow)
     for one in (*CASES, "shared", "fails")],
)  # fmt: skip
def test_sums_in_the_interpreter_equal_numpy(interpreted: dict[str, str], case: str) -> None:
    assert interpreted[case] == ""


@needs_triton
@pytest.mark.slow
def test_every_kernel_compiles_for_cuda_and_keeps_denormals(tmp_path: Path) -> None:
    """`ftz` would flush what is below 1e-38 to 0: a dead channel would be found where none is."""
    codes = in_own_process("compile", TRITON_CACHE_DIR=str(tmp_path))
    assert len(codes) == 7
    for name, code in codes.items():
        assert ".target sm_80" in code
        assert ".ftz" not in code, name


def test_without_triton_pytorch_takes_the_sums(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRADFLOW_TRITON", "1")
    monkeypatch.delattr("gradflow.record.triton_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "gradflow.record.triton_kernel", None)
    assert sums._triton.__wrapped__() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@needs_triton
@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_only_the_environment_asks_for_it(
    asked: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What never ran on a GPU is not what runs there by default."""
    monkeypatch.delenv("GRADFLOW_TRITON", raising=False)
    if asked is not None:
        monkeypatch.setenv("GRADFLOW_TRITON", asked)
    stands_in = types.ModuleType("gradflow.record.triton_kernel")
    monkeypatch.setitem(sys.modules, stands_in.__name__, stands_in)
    monkeypatch.setattr("gradflow.record.triton_kernel", stands_in, raising=False)
    assert sums._triton.__wrapped__() is (stands_in if asked == "1" else None)
    assert not caplog.records


# -- on a CUDA device --------------------------------------------------------------------------


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums are taken by the kernels, and were to the end."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    monkeypatch.setenv("GRADFLOW_TRITON", "1")
    sums._triton.cache_clear()
    assert sums._triton_for([torch.ones(1, device="cuda")]) is not None
    yield
    assert sums._triton_for([torch.ones(1, device="cuda")]) is not None, "a kernel failed"
    sums._triton.cache_clear()


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_sums_by_pytorch_on_a_gpu_equal_numpy(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default there."""
    monkeypatch.setattr(sums, "_triton_for", lambda xs: None)
    with torch.device("cuda"):
        CASES[case]()


@pytest.mark.cuda
@pytest.mark.usefixtures("by_triton")
@pytest.mark.parametrize("case", CASES)
def test_sums_on_a_gpu_equal_numpy(case: str) -> None:
    with torch.device("cuda"):
        CASES[case]()


@pytest.mark.cuda
@pytest.mark.usefixtures("by_triton")
def test_every_program_of_a_large_tensor_counts() -> None:
    x = torch.ones(3 * 7 * 2**22, device="cuda")
    x[-1] = 2
    assert gradient_sums(x).tolist() == [len(x) + 3, 0]
    for shape in ((3, -1, 7), (1, -1), (-1, 1), (-1, 3)):
        found, active = output_sums(x.view(shape), 1)
        assert found.tolist() == [len(x), len(x) + 1, len(x) + 3, len(x), 2, 0]
        assert active.all()
    found = product_sums([x, x.view(7, -1)], [x, x.view(7, -1)])[:, 1].tolist()
    assert found == [len(x) + 3] * 2


@pytest.mark.cuda
@pytest.mark.usefixtures("by_triton")
def test_nothing_waits_for_the_gpu() -> None:
    xs = [torch.randn(64, 32, 3, 3, device="cuda"), torch.randn(64, device="cuda")]
    copies = [torch.empty_like(x) for x in xs]

    def take() -> None:
        output_sums(xs[0], 1, relu=True)
        gradient_sums(xs[0])
        product_sums(xs, xs, copies)
        difference_sums(xs, copies)

    take()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
