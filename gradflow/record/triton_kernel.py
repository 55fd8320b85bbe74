"""The sums of sums.py on a CUDA device, by the Triton kernels of triton_device.py.

Parameters come by the hundred: their addresses go to the device as one table, and one launch reads
all those of one type and of rows of similar length.

Checked in Triton's interpreter on CPU tensors, and compiled for CUDA; not yet run, nor timed, on a
GPU. Until then they are used only where GRADFLOW_TRITON=1 asks for them.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradflow.record import triton_device as device
from gradflow.record.kernel import Pair
from gradflow.record.memory import HOST

DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
TILE = 4096  # elements of one tensor; of two, half as many of each
PROGRAMS = 2048  # that share one tensor: more than a GPU runs at once, few enough to add up
PROGRAMS_PER_PAIR = 512
WIDTHS, PAIR_WIDTHS = (16, 64, 256, 1024), (16, 128, 1024)  # of tiles; each is compiled

# One rounding per product and sum instead of two. Triton warns where it has to choose.
OPTIONS = {"enable_fp_fusion": True}

_log = logging.getLogger("gradflow")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _State:
    is_off = False  # since a kernel could not be compiled or launched


def reads(tensors: Iterable[Tensor]) -> bool:
    """Whether these kernels read all of the tensors: of their types, on one CUDA device."""
    places = {x.device if x.is_cuda and x.dtype in DTYPES else None for x in tensors}
    return len(places) == 1 and None not in places and not _State.is_off


def _or_none(function: Callable[_P, _R]) -> Callable[_P, _R | None]:
    """None where a kernel fails, which is said once: training goes on, with PyTorch's sums."""

    @functools.wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        try:
            return function(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # from Triton, its compilers or the driver: of any type
            _State.is_off = True
            _log.warning("gradflow takes its sums with PyTorch, since its kernel failed: %s", error)
            return None

    return guarded


@_or_none
def output_sums(
    x: Tensor, outer: int, channels: int, inner: int, relu: bool
) -> tuple[Tensor, Tensor]:
    """As in sums.py, of a tensor that is (outer, channels, inner) in memory."""
    rows, columns, by_column = outer * channels, inner, False
    if inner == 1:
        rows, columns, by_column = outer, channels, channels > 1
        if channels == 1:
            rows, columns = 1, outer
    width = _width(columns, WIDTHS)
    tiles = [triton.cdiv(rows, TILE // width), triton.cdiv(columns, width)]
    across, along = reversed(tiles) if by_column else tiles
    blocks = min(across, PROGRAMS)
    splits = min(along, PROGRAMS // blocks)
    active = torch.zeros((2 if relu else 1) * channels, dtype=torch.uint8, device=x.device)
    n_sums = 12 if relu else 6
    partials = x.new_empty(blocks * splits, n_sums, dtype=torch.float64)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        device.output[(blocks * splits,)](
            x, partials, active, rows, columns, channels, blocks, splits,
            RELU=relu, BY_COLUMN=by_column, ROWS=TILE // width, COLUMNS=width,
            num_warps=8, **OPTIONS,  # with 4, a tile and what is active overflow the registers
        )  # fmt: skip
        return _combined(partials, None, 1, of_output=True)[0], active


@_or_none
def gradient_sums(x: Tensor) -> Tensor:
    """As in sums.py, of a tensor that is dense in memory."""
    programs = min(triton.cdiv(max(x.numel(), 1), TILE), PROGRAMS)
    partials = x.new_empty(programs, 2, dtype=torch.float64)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        device.gradient[(programs,)](x, partials, x.numel(), SIZE=TILE, **OPTIONS)
        return _combined(partials, None, 1)[0]


@_or_none
def products(pairs: Sequence[Pair]) -> Tensor:
    """PRODUCT_SUMS of each pair, (pairs, 5), and the copies."""
    return _of_pairs(device.products, pairs, 5)


@_or_none
def squares(pairs: Sequence[Pair]) -> Tensor:
    """GRADIENT_SUMS of the first of each pair, (pairs, 2)."""
    return _of_pairs(device.products, [pair._replace(rows=1) for pair in pairs], 5)[:, 1:3]


@_or_none
def differences(pairs: Sequence[Pair]) -> Tensor:
    """DIFFERENCE_SUMS of each pair, (pairs, 2)."""
    return _of_pairs(device.differences, [pair._replace(rows=1) for pair in pairs], 2)


class _Group(NamedTuple):
    """What pairs have in common that one launch reads."""

    dtype: torch.dtype
    width: int
    is_aligned: bool


def _of_pairs(kernel: Any, pairs: Sequence[Pair], n_sums: int) -> Tensor:
    """(pairs, n_sums)."""
    groups: dict[_Group, list[dict[str, int]]] = {}
    for place, pair in enumerate(pairs):
        group, fields = _described(pair, place)
        groups.setdefault(group, []).append(fields)
    ordered = [fields for group in groups.values() for fields in group]
    n_programs = 0
    for fields in ordered:
        fields["at"] = n_programs
        n_programs += fields["programs"]
    table = _on(pairs[0].x.device, [[fields[name] for fields in ordered] for name in device.FIELDS])
    partials = torch.empty(n_programs, n_sums, dtype=torch.float64, device=table.device)
    with torch.cuda.device_of(table):  # type: ignore[no-untyped-call]
        for (dtype, width, is_aligned), members in groups.items():
            programs = sum(fields["programs"] for fields in members)
            kernel[(programs,)](
                table, partials, len(pairs), members[0]["at"], DTYPE=DTYPES[dtype],
                BITS={2: tl.int16, 4: tl.int32, 8: tl.int64}[dtype.itemsize],
                ALIGNED=is_aligned, ROWS=TILE // 2 // width, COLUMNS=width, **OPTIONS,
            )  # fmt: skip
        return _combined(partials, table, len(pairs))


def _described(pair: Pair, place: int) -> tuple[_Group, dict[str, int]]:
    """The launch that reads a pair, and its fields in the table but for `at`."""
    n, rows = pair.x.numel(), pair.rows
    is_vector = rows == 1
    # Programs share whole rows, and a vector in pieces of the widest tile.
    row = PAIR_WIDTHS[-1] if is_vector else n // rows
    rows = triton.cdiv(n, row) if is_vector else rows
    width = _width(row, PAIR_WIDTHS)
    programs = min(triton.cdiv(rows, TILE // 2 // width), PROGRAMS_PER_PAIR)
    copy = 0 if pair.copy is None else pair.copy.data_ptr()
    fields = {
        "x": pair.x.data_ptr(), "y": pair.y.data_ptr(), "copy": copy, "rows": rows, "row": row,
        "n": n, "programs": max(programs, 1), "place": place, "is_vector": is_vector,
    }  # fmt: skip
    # Several elements are loaded at once where every row begins and ends at a multiple of 16.
    is_aligned = all(fields[name] % 16 == 0 for name in ("x", "y", "copy", "row", "n"))
    return _Group(pair.x.dtype, width, is_aligned), fields


def _on(place: torch.device, numbers: list[list[int]]) -> Tensor:
    """From pinned memory: from any other, the copy would wait for the device."""
    is_pinned = place.type == "cuda"
    table = torch.tensor(numbers, dtype=torch.int64, device=HOST, pin_memory=is_pinned)
    return table.to(place, non_blocking=True)


def _combined(
    partials: Tensor, table: Tensor | None, pairs: int, *, of_output: bool = False
) -> Tensor:
    """(pairs, sums)."""
    programs, n_sums = partials.shape
    sums = partials.new_empty(pairs, n_sums)
    device.combine[(pairs,)](
        partials, sums, table, pairs, programs,
        SUMS=n_sums, WIDTH=triton.next_power_of_2(n_sums), OF_OUTPUT=of_output, **OPTIONS,
    )  # fmt: skip
    return sums


def _width(columns: int, widths: tuple[int, ...]) -> int:
    return next((width for width in widths if width >= columns), widths[-1])
