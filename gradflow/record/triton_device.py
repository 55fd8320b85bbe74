"""What runs on the GPU: Triton kernels that read every tensor once. triton_kernel.py launches them.

A tile of a tensor is summed in float32, the tiles in float64. Where the squares of a tile leave the
safe range of float32, the tile, which is still in registers, is summed again in float64, as in
kernel.cpp. Every program writes the sums of its tiles into a buffer; one more program per tensor
adds them in a fixed order, so that equal tensors give equal bits. Nothing waits for the device.
"""

import triton
import triton.language as tl

# Sums of float32 squares outside of these lost elements to underflow or overflow.
SMALLEST = tl.constexpr(1e-20)
LARGEST = tl.constexpr(1e37)


# -- on the device: the sums of one tile -------------------------------------------------------


@triton.jit
def _is_safe(squares: tl.tensor, n_nonzero: tl.tensor) -> tl.tensor:
    return (squares < LARGEST) & ((squares > SMALLEST) | (n_nonzero == 0))


@triton.jit
def _count(condition: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    return tl.sum(condition.to(tl.int32), axis)


@triton.jit
def _is_nonfinite(z: tl.tensor) -> tl.tensor:
    return (tl.abs(z) < float("inf")) == 0  # also of NaN


@triton.jit
def _at_least_float32(z: tl.tensor) -> tl.tensor:
    if z.dtype == tl.float64:
        return z
    else:  # noqa: RET505 - Triton compiles both where there is none
        return z.to(tl.float32)


@triton.jit
def _tile_sums(z: tl.tensor) -> tl.tuple:
    """Σz, Σz², elements ≠ 0, max |z| and non-finite elements of a tile."""
    n_nonzero, n_nonfinite = _count(z != 0, None), tl.full((), 0, tl.int32)
    total, square = tl.sum(z).to(tl.float64), tl.sum(z * z).to(tl.float64)
    max_abs = tl.max(tl.abs(z)).to(tl.float64)
    if not _is_safe(square, n_nonzero):  # NaN and inf always end here
        wide = z.to(tl.float64)
        total, square = tl.sum(wide), tl.sum(wide * wide)
        n_nonfinite = _count(_is_nonfinite(z), None)
        max_abs = tl.where(_count(z != z, None) > 0, float("nan"), max_abs)
    return total, square, n_nonzero, max_abs, n_nonfinite


@triton.jit
def _no_sums() -> tl.tuple:
    zero, none = tl.full((), 0, tl.float64), tl.full((), 0, tl.int64)
    return zero, zero, none, zero, none


@triton.jit
def _added(a: tl.tuple, b: tl.tuple) -> tl.tuple:
    max_abs = tl.where((b[3] > a[3]) | (b[3] != b[3]), b[3], a[3])  # NaN stays
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], max_abs, a[4] + b[4]


# -- on the device: outputs --------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows", "channels", "blocks", "splits"])
def output(
    x: tl.tensor,
    partials: tl.tensor,
    active: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    channels: tl.tensor,
    blocks: tl.tensor,
    splits: tl.tensor,
    RELU: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """OUTPUT_SUMS of the tiles of one program, and with RELU those of max(z, 0) behind them.

    x is (rows, columns) in memory; its channels are the columns, or row r is of channel
    r % channels. A program goes through tiles along the dimension that is not the channels': it
    knows what is active when it has seen them all, and stores it once.
    """
    program = tl.program_id(0)
    z_sums, p_sums = _no_sums(), _no_sums()
    across, along = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    if BY_COLUMN:
        across, along = along, across
    for block in range(program // splits, across, blocks):
        z_active = tl.full((ROWS, COLUMNS), 0, tl.int1)
        p_active = tl.full((ROWS, COLUMNS), 0, tl.int1)
        row = block * ROWS + tl.arange(0, ROWS)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        for tile in range(program % splits, along, splits):
            if BY_COLUMN:
                row = tile * ROWS + tl.arange(0, ROWS)
            else:
                column = tile * COLUMNS + tl.arange(0, COLUMNS)
            at = row[:, None].to(tl.int64) * columns + column[None, :]
            inside = (row < rows)[:, None] & (column < columns)[None, :]
            z = _at_least_float32(tl.load(x + at, inside, 0))
            z_active |= z != 0
            z_sums = _added(z_sums, _tile_sums(z))
            if RELU:
                p = tl.where(z <= 0, 0, z)  # NaN stays
                p_active |= p != 0
                p_sums = _added(p_sums, _tile_sums(p))
        # Several programs may store the same 1.
        if BY_COLUMN:
            tl.store(active + column, 1, _count(z_active, 0) > 0)
            if RELU:
                tl.store(active + channels + column, 1, _count(p_active, 0) > 0)
        else:
            tl.store(active + row % channels, 1, _count(z_active, 1) > 0)
            if RELU:
                tl.store(active + channels + row % channels, 1, _count(p_active, 1) > 0)
    n = tl.where(program == 0, tl.cast(rows, tl.float64) * columns, 0)
    _store_output_sums(partials + program * (12 if RELU else 6), n, z_sums)
    if RELU:
        _store_output_sums(partials + program * 12 + 6, n, p_sums)


@triton.jit
def _store_output_sums(to: tl.tensor, n: tl.tensor, sums: tl.tuple) -> None:
    tl.store(to, n)
    for i in tl.static_range(5):
        tl.store(to + 1 + i, sums[i].to(tl.float64))


@triton.jit
def gradient(x: tl.tensor, partials: tl.tensor, n: tl.tensor, SIZE: tl.constexpr) -> None:
    """Σx² and the number of non-finite elements of the tiles of one program."""
    program = tl.program_id(0)
    sums = _no_sums()
    for tile in range(program, tl.cdiv(n, SIZE), tl.num_programs(0)):
        at = tl.cast(tile, tl.int64) * SIZE + tl.arange(0, SIZE)
        sums = _added(sums, _tile_sums(_at_least_float32(tl.load(x + at, at < n, 0))))
    tl.store(partials + program * 2, sums[1])
    tl.store(partials + program * 2 + 1, sums[4].to(tl.float64))


# -- on the device: pairs ----------------------------------------------------------------------

# The fields of the table: (fields, pairs) of int64. `row` elements make a row; `at` is the first
# of the `programs` that share the pair, and `place` its row in the result.
FIELDS = ("x", "y", "copy", "rows", "row", "n", "at", "programs", "place", "is_vector")
X, Y, COPY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
N_ROWS, ROW, N = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
AT, SHARED_BY, PLACE, IS_VECTOR = (tl.constexpr(i) for i in range(6, 10))
SEARCHED = tl.constexpr(512)  # pairs that a program looks through at once for its own


@triton.jit
def _pair_of(program: tl.tensor, table: tl.tensor, pairs: tl.tensor) -> tl.tensor:
    """The last pair whose first program is not behind this one."""
    pair = -1
    for first in range(0, pairs, SEARCHED):
        i = first + tl.arange(0, SEARCHED)
        at = tl.load(table + AT * pairs + i, i < pairs, program + 1)
        pair += _count(at <= program, 0)
    return pair


@triton.jit
def _address(table: tl.tensor, DTYPE: tl.constexpr, ALIGNED: tl.constexpr) -> tl.tensor:
    address = tl.load(table).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(address, 16) if ALIGNED else address


@triton.jit
def _length(table: tl.tensor, ALIGNED: tl.constexpr) -> tl.tensor:
    length = tl.load(table)
    return tl.multiple_of(length, 16) if ALIGNED else length


@triton.jit
def _tile_products(x: tl.tensor, y: tl.tensor) -> tl.tuple:
    """Σx², Σy², non-finite elements of y, Σxy of each row of a tile."""
    xx, yy = tl.sum(x * x, 1).to(tl.float64), tl.sum(y * y, 1).to(tl.float64)
    xy = tl.sum(x * y, 1).to(tl.float64)
    n_nonfinite = tl.zeros_like(xx).to(tl.int32)
    is_safe = _is_safe(xx, _count(x != 0, 1)) & _is_safe(yy, _count(y != 0, 1))
    if _count(is_safe == 0, 0) > 0:
        a, b = x.to(tl.float64), y.to(tl.float64)
        xx, yy, xy = tl.sum(a * a, 1), tl.sum(b * b, 1), tl.sum(a * b, 1)
        n_nonfinite = _count(_is_nonfinite(y), 1)
    return xx, yy, n_nonfinite, xy


@triton.jit
def _tile_differences(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """Σ(x − y)² of a tile."""
    d = x - y
    square = tl.sum(d * d).to(tl.float64)
    if not _is_safe(square, _count(d != 0, None)):
        wide = x.to(tl.float64) - y.to(tl.float64)
        square = tl.sum(wide * wide)
    return square


@triton.jit(do_not_specialize=["pairs", "first"])
def products(
    table: tl.tensor,
    partials: tl.tensor,
    pairs: tl.tensor,
    first: tl.tensor,
    DTYPE: tl.constexpr,
    BITS: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """PRODUCT_SUMS of the rows of one program, which are whole rows."""
    program = tl.program_id(0) + first
    pair = _pair_of(program, table, pairs)
    of_pair = table + pair
    x = _address(of_pair + X * pairs, DTYPE, ALIGNED)
    y = _address(of_pair + Y * pairs, DTYPE, ALIGNED)
    copy = _address(of_pair + COPY * pairs, DTYPE, ALIGNED)
    is_copied = tl.load(of_pair + COPY * pairs) != 0
    rows, row_length = tl.load(of_pair + N_ROWS * pairs), _length(of_pair + ROW * pairs, ALIGNED)
    n = _length(of_pair + N * pairs, ALIGNED)
    block = program - tl.load(of_pair + AT * pairs)
    blocks = tl.load(of_pair + SHARED_BY * pairs)
    zero = tl.full((ROWS,), 0, tl.float64)
    xx, yy, xy, products = zero, zero, zero, zero
    n_nonfinite = tl.full((ROWS,), 0, tl.int64)
    for start in range(block * ROWS, rows, blocks * ROWS):
        row = start + tl.arange(0, ROWS)
        row_xx, row_yy = zero, zero
        for left in range(0, row_length, COLUMNS):
            column = left + tl.arange(0, COLUMNS)
            at = row[:, None] * row_length + column[None, :]
            inside = (row < rows)[:, None] & (column < row_length)[None, :] & (at < n)
            a, b = tl.load(x + at, inside, 0), tl.load(y + at, inside, 0)
            if is_copied:
                tl.store(copy + at, a, inside)
            sums = _tile_products(_at_least_float32(a), _at_least_float32(b))
            row_xx += sums[0]
            row_yy += sums[1]
            n_nonfinite += sums[2]
            xy += sums[3]
        xx += row_xx
        yy += row_yy
        products += row_xx * row_yy
    to = partials + program.to(tl.int64) * 5
    tl.store(to, tl.sum(xx))
    tl.store(to + 1, tl.sum(yy))
    tl.store(to + 2, tl.sum(n_nonfinite).to(tl.float64))
    tl.store(to + 3, tl.sum(xy))
    tl.store(to + 4, tl.sum(products))


@triton.jit(do_not_specialize=["pairs", "first"])
def differences(
    table: tl.tensor,
    partials: tl.tensor,
    pairs: tl.tensor,
    first: tl.tensor,
    DTYPE: tl.constexpr,
    BITS: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """DIFFERENCE_SUMS of the tiles of one program."""
    program = tl.program_id(0) + first
    pair = _pair_of(program, table, pairs)
    of_pair = table + pair
    x = _address(of_pair + X * pairs, DTYPE, ALIGNED)
    y = _address(of_pair + Y * pairs, DTYPE, ALIGNED)
    n = _length(of_pair + N * pairs, ALIGNED)
    block = program - tl.load(of_pair + AT * pairs)
    blocks = tl.load(of_pair + SHARED_BY * pairs)
    square, n_changed = tl.full((), 0, tl.float64), tl.full((), 0, tl.int64)
    SIZE: tl.constexpr = ROWS * COLUMNS
    for start in range(block * SIZE, n, blocks * SIZE):
        at = start + tl.arange(0, SIZE)
        a, b = tl.load(x + at, at < n, 0), tl.load(y + at, at < n, 0)
        square += _tile_differences(_at_least_float32(a), _at_least_float32(b))
        n_changed += _count(a.to(BITS, bitcast=True) != b.to(BITS, bitcast=True), None)
    to = partials + program.to(tl.int64) * 2
    tl.store(to, square)
    tl.store(to + 1, n_changed.to(tl.float64))


# -- on the device: what the programs found, together ------------------------------------------

ADDED = tl.constexpr(128)  # programs, at once


@triton.jit(do_not_specialize=["pairs", "programs"])
def combine(
    partials: tl.tensor,
    sums: tl.tensor,
    table: tl.tensor,
    pairs: tl.tensor,
    programs: tl.tensor,
    SUMS: tl.constexpr,
    WIDTH: tl.constexpr,
    OF_OUTPUT: tl.constexpr,
) -> None:
    """Adds up (programs, SUMS), for each pair or, without a table, of one tensor.

    Of an output's `max_abs` it takes the largest. A vector is one row, which many programs shared:
    ‖x‖² ‖y‖² is known only here.
    """
    first, place = tl.full((), 0, tl.int64), tl.program_id(0).to(tl.int64)
    if table is not None:
        of_pair = table + tl.program_id(0)
        first, place = tl.load(of_pair + AT * pairs), tl.load(of_pair + PLACE * pairs)
        programs = tl.load(of_pair + SHARED_BY * pairs)
    k = tl.arange(0, WIDTH)
    total = tl.full((ADDED, WIDTH), 0, tl.float64)
    largest = tl.full((ADDED, WIDTH), 0, tl.float64)
    for start in range(0, programs, ADDED):
        program = start + tl.arange(0, ADDED)
        inside = (program < programs)[:, None] & (k < SUMS)[None, :]
        part = tl.load(partials + (first + program)[:, None] * SUMS + k[None, :], inside, 0)
        total += part
        largest = tl.where(part > largest, part, largest)
    result = tl.sum(total, 0)
    if OF_OUTPUT:
        # Their sum is NaN where one of them is.
        result = tl.where((k % 6 == 4) & (result == result), tl.max(largest, 0), result)
    elif SUMS == 5:
        xx = tl.sum(tl.where(k == 0, result, 0), 0)
        yy = tl.sum(tl.where(k == 1, result, 0), 0)
        is_vector = tl.load(of_pair + IS_VECTOR * pairs) != 0
        result = tl.where((k == 4) & is_vector, xx * yy, result)
    tl.store(sums + place * SUMS + k, result, k < SUMS)
