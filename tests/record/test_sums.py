"""The sums against float64 NumPy: any shape, type, layout and value, compiled and by PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import inf, isfinite, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradflow.record import kernel
from gradflow.record.sums import (
    OUTPUT_SUMS,
    difference_sums,
    gradient_sums,
    output_sums,
    product_sums,
)
from gradflow.record.torch_sums import dot

LIBRARY = kernel.library  # tests with the other engine put something else in its place
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
LAYOUTS = ("contiguous", "offset", "channels_last", "sliced", "transposed", "expanded")
FINITE = (0.0, -0.0, 1e-41, -1e-25, 1e-25, 1e-22, 3e-20, 1e30, -1e30)
NONFINITE = (np.nan, np.inf, -np.inf)
RTOL = 2e-5  # a sum of float32 values, relative to the sum of their sizes


# -- tensors to sum ----------------------------------------------------------------------------


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same elements, in memory as `layout` says; of an expanded one, the first of a row."""
    if layout == "offset":  # no register-sized boundary is met
        return torch.cat([x.new_ones(1), x.flatten()])[1:].view(x.shape)
    if layout == "channels_last" and x.dim() in (4, 5):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats[x.dim()])
    if layout == "sliced":
        return torch.stack([x, torch.full_like(x, 7)], dim=-1)[..., 0]
    if layout == "transposed":
        order = list(range(x.dim()))[::-1]
        return x.permute(order).contiguous().permute(order)
    if layout == "expanded":
        return x.narrow(-1, 0, 1).expand(x.shape)
    return x


def tensor(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, special: tuple[float, ...], seed: int
) -> Tensor:
    """Normal values, a third of them replaced by special ones."""
    random = np.random.default_rng(seed)

    def numbers() -> np.ndarray:
        values = random.standard_normal(shape)
        if not special:
            return values
        return np.where(random.random(shape) < 0.3, random.choice(special, shape), values)

    if dtype == torch.complex64:
        x = torch.complex(torch.tensor(numbers()).float(), torch.tensor(numbers()).float())
    else:
        x = torch.tensor(numbers()).to(dtype)
    return in_layout(x, layout)


def as_numpy(x: Tensor) -> np.ndarray:
    """In float64; a complex number is two real ones in the last dimension."""
    x = x.cpu()
    if not x.is_complex():
        return x.double().numpy()
    both = torch.stack([x.real.double(), x.imag.double()], dim=-1).numpy()
    return both.reshape(*x.shape[:-1], -1)


shapes = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple) | st.lists(
    st.sampled_from([1, 2, 15, 16, 17, 33]), min_size=1, max_size=3
).map(tuple)
specials = st.lists(st.sampled_from(FINITE + NONFINITE), max_size=4).map(tuple)
seeds = st.integers(0, 2**32 - 1)
tensors = st.builds(
    tensor, shapes, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), specials, seeds
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape and type, each in a layout of its own."""
    shape, dtype, special = draw(shapes), draw(st.sampled_from(DTYPES)), draw(specials)
    x, y = (
        tensor(shape, dtype, draw(st.sampled_from(LAYOUTS)), special, draw(seeds)) for _ in "xy"
    )
    return x, y


# -- what they should be -----------------------------------------------------------------------


def assert_sum(got: float, terms: np.ndarray, rtol: float = RTOL) -> None:
    """`got` is the sum of the terms: as exact as float32 is, or the same NaN or inf."""
    want = terms.sum()
    if not np.isfinite(want):
        assert np.array_equal(got, want, equal_nan=True), (got, want)
    else:
        assert abs(got - want) <= rtol * np.abs(terms).sum(), (got, want)


def assert_output_sums(sums: Tensor, active: Tensor, z: np.ndarray, channel_dim: int) -> None:
    got = dict(zip(OUTPUT_SUMS, sums.tolist(), strict=True))
    assert (sums.dtype, active.dtype) == (torch.float64, torch.uint8)
    assert got["n"] == z.size
    assert_sum(got["sum"], z)
    assert_sum(got["square"], z**2)
    assert got["nonzero"] == np.count_nonzero(z)
    assert np.array_equal(got["max_abs"], np.abs(z).max(), equal_nan=True)
    assert got["nonfinite"] == np.count_nonzero(~np.isfinite(z))
    channels = np.moveaxis(z, channel_dim, 0).reshape(z.shape[channel_dim], -1)
    np.testing.assert_array_equal(active.cpu().numpy(), (channels != 0).any(axis=1))


def relu(z: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(z), z, np.maximum(z, 0))


def rows_of(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], -1) if x.ndim > 1 else x.reshape(1, -1)


def assert_product_sums(row: Tensor, x: np.ndarray, y: np.ndarray) -> None:
    x_square, y_square, y_nonfinite, product, row_squares = row.tolist()
    assert_sum(x_square, x**2)
    assert_sum(y_square, y**2)
    assert y_nonfinite == np.count_nonzero(~np.isfinite(y))
    # The error of a product is that of the norms: tiny terms of a large product may underflow.
    want, size = (x * y).sum(), np.sqrt((x**2).sum() * (y**2).sum())
    if np.isfinite(size):
        assert abs(product - want) <= RTOL * size
    else:
        np.testing.assert_equal(product, want)
    assert_sum(row_squares, (rows_of(x) ** 2).sum(axis=1) * (rows_of(y) ** 2).sum(axis=1))


def bits(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.float().cpu().numpy() if x.itemsize == 2 else as_numpy(x)).view(
        np.int32 if x.itemsize == 2 else np.int64
    )


# -- the sums ----------------------------------------------------------------------------------


@np.errstate(invalid="ignore", over="ignore")
def assert_sums_of_one(x: Tensor, channel_dim: int) -> None:
    """Both halves of a ReLU, and those of a gradient."""
    z = as_numpy(x)
    n = z.shape[channel_dim]
    sums, active = output_sums(x, channel_dim, relu=True)
    assert_output_sums(sums[:6], active[:n], z, channel_dim)
    assert_output_sums(sums[6:], active[n:], relu(z), channel_dim)
    square, n_nonfinite = gradient_sums(x).tolist()
    assert_sum(square, z**2)
    assert n_nonfinite == np.count_nonzero(~np.isfinite(z))


@np.errstate(invalid="ignore", over="ignore")
def assert_sums_of_pairs(xs: Sequence[Tensor], ys: Sequence[Tensor], with_copies: bool) -> None:
    """−0.0 differs from 0.0 by a bit, and a NaN not from itself."""
    copies = [torch.empty_like(x) for x in xs] if with_copies else []
    products, differences = product_sums(xs, ys, copies), difference_sums(xs, ys)
    assert (products.shape, differences.shape) == ((len(xs), 5), (len(xs), 2))
    for x, y, row, (square, changed) in zip(xs, ys, products, differences.tolist(), strict=True):
        assert_product_sums(row, as_numpy(x), as_numpy(y))
        assert_sum(square, (as_numpy(x) - as_numpy(y)) ** 2)
        assert changed == np.count_nonzero(bits(x) != bits(y))
    for x, copy in zip(xs, copies, strict=False):
        np.testing.assert_array_equal(as_numpy(copy), as_numpy(x))


@settings(max_examples=150, deadline=None)
@given(x=tensors, data=st.data())
def test_sums_of_a_tensor_equal_numpy(engine: str, x: Tensor, data: st.DataObject) -> None:
    """Whatever the channel dimension, counted from either end."""
    z = as_numpy(x)
    dim = data.draw(st.integers(-z.ndim, z.ndim - 1))
    assert_sums_of_one(x, dim)
    with np.errstate(invalid="ignore"):
        assert_output_sums(*output_sums(x, dim), z, dim)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.lists(pairs(), max_size=3),
    share=st.sampled_from([None, 0.5, 1]),
    with_copies=st.booleans(),
    seed=seeds,
)
def test_sums_of_pairs_equal_numpy(
    engine: str,
    batch: list[tuple[Tensor, Tensor]],
    share: float | None,
    with_copies: bool,
    seed: int,
) -> None:
    """A batch may mix types, a share of elements be alike; copies are made, whoever sums."""
    generator = torch.Generator().manual_seed(seed)
    xs, ys = [x for x, _ in batch], [y for _, y in batch]
    if share is not None:
        ys = [torch.where(torch.rand(x.shape, generator=generator) < share, x, y) for x, y in batch]
    assert_sums_of_pairs(xs, ys, with_copies)
    for x, y in batch[:1]:
        with np.errstate(invalid="ignore"):
            assert_sum(dot(x, y).item(), as_numpy(x) * as_numpy(y), rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(pair=pairs(), data=st.data())
def test_kernel_and_pytorch_give_the_same_numbers(
    pair: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    """A run on a machine without a compiler is comparable with one that has it."""
    if LIBRARY() is None:
        pytest.skip("no C++ compiler on this machine, or GRADFLOW_KERNEL=0")
    x, y = pair
    dim = data.draw(st.integers(0, x.dim() - 1))

    def sums() -> list[Tensor]:
        outputs, active = output_sums(x, dim, relu=True)
        products = product_sums([x], [y])[0]
        return [outputs, products, active.double(), gradient_sums(x), difference_sums([x], [y])[0]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "library", LIBRARY)
        compiled = sums()
        patch.setattr(kernel, "library", lambda: None)
        eager = sums()
    # Of the squares of many 16-bit numbers, PyTorch rounds the sum to one side.
    rtol = 1e-5 if x.itemsize == 2 else 1e-6
    # A sum of terms of both signs is as exact as the sum of their sizes, here from the squares.
    (n, _, square, *_), (x_square, y_square, *_) = compiled[:2]
    sizes = [(n * square).sqrt(), (x_square * y_square).sqrt(), torch.inf, torch.inf, torch.inf]
    for one, other, size in zip(compiled, eager, sizes, strict=True):
        atol = rtol * float(size) if isfinite(size) else 0
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True)


# -- many elements -----------------------------------------------------------------------------

BIG = [(3, 37, 41, 19), (40, 1031), (2, 700, 37), (50001,), (3000, 1, 17), (1, 40009)]


@pytest.fixture
def two_threads(engine: str) -> Iterator[None]:
    """For the kernel, which shares the elements out by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if engine == "kernel" else 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("special", [(), (0.0, 1e-25), (1e30,), NONFINITE], ids=str)
@pytest.mark.parametrize("shape", BIG, ids=str)
@pytest.mark.usefixtures("two_threads")
def test_shares_of_two_threads_and_many_tiles(
    engine: str, shape: tuple[int, ...], special: tuple[float, ...]
) -> None:
    """Every element is in one share and one tile, also at the ends, which no tile fills."""
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        x, y = (tensor(shape, torch.float32, layout, special, seed) for seed in (0, 1))
        for dim in range(x.dim()):
            assert_sums_of_one(x, dim)
        assert_sums_of_pairs([x], [y], with_copies=True)


@pytest.mark.parametrize("channel_dim", [0, 1, 2])
@pytest.mark.usefixtures("two_threads")
def test_one_active_element_is_found_wherever_it_lies(engine: str, channel_dim: int) -> None:
    """A dead channel must not be one whose only life lies at the end of a tile or a share."""
    shape = (50, 30, 29)
    for index in ((0, 0, 0), (49, 29, 28), (24, 29, 28), (25, 0, 0), (17, 15, 16)):
        for planted in (1e-41, -3.0, float("nan")):
            x = torch.zeros(shape)
            x[index] = planted
            sums, active = output_sums(x, channel_dim, relu=True)
            want = torch.zeros(shape[channel_dim], dtype=torch.uint8)
            want[index[channel_dim]] = 1
            assert torch.equal(active[: len(want)], want)
            assert torch.equal(active[len(want) :], want * (planted != -3.0))
            assert sums[[3, 9]].tolist() == [1, planted != -3.0]


def test_sums_of_millions_of_values_keep_six_digits(engine: str) -> None:
    """`vector_norm` on a CPU is off by 1e-4 here: float32 sums must be taken in pieces."""
    x = torch.randn(6_000_000, generator=torch.Generator().manual_seed(0))
    want = np.square(x.double().numpy()).sum()
    y = torch.ones_like(x)
    assert gradient_sums(x)[0].item() == pytest.approx(want, rel=1e-6)
    assert output_sums(x.view(3, 20, -1), 1)[0][2].item() == pytest.approx(want, rel=1e-6)
    x_square, y_square, _, product, _ = product_sums([x], [y])[0].tolist()
    assert (x_square, y_square) == (pytest.approx(want, rel=1e-6), len(x))
    assert product == pytest.approx(x.double().sum().item(), abs=1e-6 * len(x))
    square = np.square(x.double().numpy() - 1).sum()
    assert difference_sums([x], [y])[0, 0].item() == pytest.approx(square, rel=1e-6)


# -- what is easily lost -----------------------------------------------------------------------


def check_outputs_without_a_relu() -> None:
    x = torch.tensor([[3.0, 0.0, -1.0], [-4.0, 0.0, -2.0]])
    for layout in ("contiguous", "transposed"):
        sums, active = output_sums(in_layout(x, layout), 1)
        assert sums.tolist() == [6, -4, 30, 4, 4, 0]
        assert active.tolist() == [1, 0, 1]


def check_values_that_are_easily_lost() -> None:
    """1e30² overflows float32, (1e-25)² underflows, (1e-22)² is denormal and would lose its digits:
    none of them is non-finite or 0. NaN spoils the sums that it enters and no others. A conjugate,
    and its imaginary part where it is one number, lie in memory with the other sign.
    """
    numbers = ([1e30, -3e30], [1e-25, 2e-25], [1e-22, 1e-22], [1.0, nan], [1.0, -2.0], [inf, 0.0])
    reals = [torch.tensor(pair).repeat(2, 20) for pair in numbers]
    conjugates = [torch.tensor([[1 + 2j], [3 + 4j]]).conj(), torch.tensor([[1 + 2j]]).conj()]
    for x in (*reals, *conjugates, conjugates[1].imag):
        assert_sums_of_one(x, 0)
    xs, ys = [*reals, conjugates[0]], [*reals[1:], reals[0], conjugates[0]]
    assert_sums_of_pairs(xs, ys, with_copies=True)


def check_bits_of_copies() -> None:
    x = torch.tensor([-0.0, 1e-45, float("nan"), float("inf"), *range(40)])
    for one in (x, x.bfloat16(), x.half(), x.view(2, 22).t()):
        copy = torch.empty_like(one)
        product_sums([one], [one], [copy])
        integers = {2: torch.int16, 4: torch.int32}[one.itemsize]
        assert copy.view(integers).equal(one.view(integers))


def check_empty_tensors() -> None:
    for shape in ((0,), (0, 3), (3, 0)):
        x = torch.empty(shape)
        assert gradient_sums(x).tolist() == [0, 0]
        assert product_sums([x], [x], [torch.empty_like(x)]).tolist() == [[0] * 5]
        assert difference_sums([x], [x]).tolist() == [[0, 0]]
        assert dot(x, x).item() == 0
    assert product_sums([], []).shape == (0, 5)
    assert difference_sums([], []).shape == (0, 2)


EXAMPLES = (
    check_outputs_without_a_relu,
    check_values_that_are_easily_lost,
    check_bits_of_copies,
    check_empty_tensors,
)


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_is_easily_lost(engine: str, example: Callable[[], None]) -> None:
    example()


def test_nothing_keeps_a_graph_or_changes_its_input(engine: str) -> None:
    x = torch.randn(4, 5, requires_grad=True)
    before = x.detach().clone()
    results = [
        output_sums(x, 1)[0], gradient_sums(x), product_sums([x], [x]), difference_sums([x], [x]),
        dot(x, x),
    ]  # fmt: skip
    assert not any(result.requires_grad for result in results)
    assert torch.equal(x, before)
    assert x._version == 0


def test_integers_are_compared_bit_by_bit(engine: str) -> None:
    """Weights of quantised layers stand among the parameters of a model."""
    for dtype in (torch.int8, torch.uint8, torch.int64):
        x, y = torch.tensor([1, 2, 3], dtype=dtype), torch.tensor([1, 5, 3], dtype=dtype)
        assert difference_sums([x], [y]).tolist() == [[9, 1]]
        assert gradient_sums(x).tolist() == [14, 0]


@pytest.mark.usefixtures("two_threads")
def test_the_same_tensor_gives_the_same_bits(engine: str) -> None:
    """Threads add in a fixed order: records of two equal runs are equal."""
    x = torch.randn(31, 40, 50, generator=torch.Generator().manual_seed(0))
    runs = [
        (output_sums(x, 1, relu=True)[0], gradient_sums(x), product_sums([x], [x.cos()]))
        for _ in range(5)
    ]
    for one, other in pairwise(runs):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
