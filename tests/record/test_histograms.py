"""Histograms: against numpy.frexp and closed forms, through a Recorder, and on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from loops import Net, recorded, sgd
from torch import Tensor, nn

from gradflow import Recorder, Trace
from gradflow.files import DamagedFile
from gradflow.record import load_histograms
from gradflow.record.exponents import exponent_counts
from gradflow.record.histograms import (
    EXPONENTS,
    GRADIENTS,
    HIGHEST,
    LOWEST,
    N_BINS,
    NONFINITE,
    WEIGHTS,
    ZERO,
)

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def by_numpy(x: Tensor) -> list[int]:
    values = x.detach().double().numpy().ravel()
    counts = [int((values == 0).sum())] + [0] * (N_BINS - 1)
    counts[NONFINITE] = int((~np.isfinite(values)).sum())
    for value in values[np.isfinite(values) & (values != 0)]:
        exponent = np.frexp(value)[1] - 1  # |x| = m 2^e with m from 1 to 2
        counts[int(np.clip(exponent, LOWEST, HIGHEST)) - LOWEST + 1] += 1
    return counts


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_counts_equal_numpys_frexp(engine: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    sizes = torch.exp2(torch.randint(-90, 30, (70_001,), generator=random).double())
    x = (torch.randn(70_001, generator=random, dtype=torch.float64) * sizes).to(dtype)
    x[:9] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1.0, -1.0, 2.0, 0.5])
    assert exponent_counts(x).tolist() == by_numpy(x)
    assert exponent_counts(x[::3]).tolist() == by_numpy(x[::3])


@pytest.mark.parametrize(
    ("value", "bin_of"),
    [
        (1.0, 1 - LOWEST),
        (np.nextafter(np.float32(1), np.float32(0)), -LOWEST),
        (2.0**LOWEST, 1),
        (2.0**-130, 1),  # denormal
        (1e-45, 1),
        (2.0**HIGHEST, NONFINITE - 1),
        (3e38, NONFINITE - 1),
    ],
)
def test_a_number_stands_in_the_bin_of_its_power_of_two(
    engine: str, value: float, bin_of: int
) -> None:
    assert exponent_counts(torch.tensor([value])).nonzero().tolist() == [[bin_of]]


def test_nothing_scalars_and_complex_numbers_are_counted(engine: str) -> None:
    assert exponent_counts(torch.empty(0)).sum() == 0
    assert exponent_counts(torch.tensor(1.0))[1 - LOWEST] == 1
    both = exponent_counts(torch.tensor([1 + 4j, 0 + 1j]))
    assert [int(both[i]) for i in (ZERO, 1 - LOWEST, 3 - LOWEST)] == [1, 2, 1]


def test_shares_of_threads_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    counts = exponent_counts(torch.tensor([1.0, 0.0, 4.0]).repeat(30_001))
    assert [int(counts[i]) for i in (ZERO, 1 - LOWEST, 3 - LOWEST)] == [30_001] * 3


# -- through a Recorder ------------------------------------------------------------------------


def scaled(net: Net, x: Tensor) -> Tensor:
    """y = w·x of one example: ∂(Σ c·y)/∂w = c·x, known by hand."""
    return net.weight * x + net.frozen.sum()


def counted(folder: Path | None = None, histograms: bool = True, **options: Any) -> Trace:
    model = Net(
        scaled,
        weight=nn.Parameter(torch.tensor([1.0, 0.0, -3.0, 8.0])),
        frozen=nn.Parameter(torch.ones(3), requires_grad=False),
    )
    x = torch.tensor([0.0, 0.25, 0.25, 1.0])
    options |= {"folder": folder, "histograms": histograms}
    return recorded(model, lambda _: model(x).sum(), sgd(model, 0.0), **options)


def bins(counts: np.ndarray) -> dict[int | str, int]:
    names = ["zero", *EXPONENTS.tolist(), "not finite"]
    return {names[i]: int(counts[i]) for i in np.flatnonzero(counts)}


def test_weights_and_gradients_are_counted_before_the_step() -> None:
    found = counted().histograms
    assert found.sites == ("weight", "frozen")
    weight, frozen = found.counts[WEIGHTS][0]
    assert bins(weight) == {"zero": 1, 0: 1, 1: 1, 3: 1}
    assert bins(frozen) == {0: 3}
    assert [bins(one) for one in found.counts[GRADIENTS][0]] == [{"zero": 1, -2: 2, 0: 1}, {}]
    shares = found.shares(GRADIENTS)[0]
    assert dict(zip(EXPONENTS[shares[0] > 0], shares[0][shares[0] > 0], strict=True)) == {
        -2: 0.5,
        0: 0.25,
    }
    assert np.isnan(shares[1]).all(), "a parameter without gradient has none"


def test_they_are_counted_at_the_full_steps_and_only_where_they_are_asked_for() -> None:
    found = counted(n_steps=40, cadence=8).histograms
    assert found.steps.tolist() == [*range(17), 24, 32]
    assert counted(n_steps=40, cadence=8).select("grad_norm").values.shape == (40, 1)
    assert counted(histograms=False).histograms is None


def test_they_are_counted_where_nothing_else_is_read(tmp_path: Path) -> None:
    counted(tmp_path, measures=["output_rms"])
    found = load_histograms(tmp_path)
    assert bins(found.counts[WEIGHTS][0, 0]) == {"zero": 1, 0: 1, 1: 1, 3: 1}


def test_what_a_fused_step_unscales_is_counted_in_true_size() -> None:
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Recorder(model, optimizer, scaler=scaler, histograms=True) as recorder:
        scaler.scale(model(torch.tensor([[1.0, 2.0, 0.0, 1.0]])).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    found = recorder.trace.histograms
    assert bins(found.counts[GRADIENTS][0, 0]) == {"zero": 1, 0: 2, 1: 1}


def test_what_a_sparse_gradient_does_not_hold_is_zero() -> None:
    model = nn.Embedding(10, 3, sparse=True)
    trace = recorded(model, lambda _: model(torch.tensor([4, 4])).sum(), histograms=True)
    assert bins(trace.histograms.counts[GRADIENTS][0, 0]) == {"zero": 27, 1: 3}


# -- on disk -----------------------------------------------------------------------------------


def test_files_hold_them_and_readers_of_the_rest_see_none(tmp_path: Path) -> None:
    in_memory = counted(n_steps=80).histograms
    counted(tmp_path, n_steps=80)
    found = load_histograms(tmp_path)
    assert (found.sites, found.steps.tolist()) == (in_memory.sites, in_memory.steps.tolist())
    for name, counts in in_memory.counts.items():
        np.testing.assert_array_equal(found.counts[name], counts)
    trace = Trace.load(tmp_path)
    assert (trace.histograms, GRADIENTS in trace.measures, len(trace)) == (None, False, 80)
    table = pq.read_table(tmp_path / "records")
    assert table[GRADIENTS].type == pa.list_(pa.int64())
    first = table.slice(0, 3)  # the output, and two parameters
    assert [row and sum(row) for row in first[WEIGHTS].to_pylist()] == [None, 4, 3]


def test_few_steps_are_read_evenly_spaced_with_the_last(tmp_path: Path) -> None:
    counted(tmp_path, n_steps=200, cadence=4)
    for at_most, steps in ((1, [196]), (2, [0, 196]), (3, [0, 96, 196])):
        found = load_histograms(tmp_path, at_most=at_most)
        assert found.steps.tolist() == steps
    last = load_histograms(tmp_path, from_step=128, at_most=2)
    assert last.steps.tolist() == [128, 196]
    assert load_histograms(tmp_path, from_step=300) is None
    assert load_histograms(tmp_path / "nothing", at_most=1) is None


@pytest.mark.parametrize(
    "counts", [[1] * (N_BINS - 1), [-1] * N_BINS, "text"], ids=["short", "negative", "text"]
)
def test_damaged_counts_are_named(tmp_path: Path, counts: object) -> None:
    counted(tmp_path)
    (path,) = (tmp_path / "records").glob("part-*")
    table = pq.read_table(path)
    column = table.column_names.index(GRADIENTS)
    changed = table.set_column(column, GRADIENTS, pa.array([counts] * len(table)))
    pq.write_table(changed, path)
    with pytest.raises(DamagedFile, match="Expected records of a Recorder in .*part-000000000"):
        load_histograms(tmp_path)
