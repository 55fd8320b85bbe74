"""Trace: shapes checked, files complete, depth order kept."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradflow import Trace
from gradflow.record.trace import drop_from, load_parts


def trace(steps=(0, 1, 2), sites=("b", "a.weight", "a"), start: float = 0.0) -> Trace:
    table = start + np.arange(len(steps) * len(sites), dtype=float).reshape(len(steps), -1)
    grads = table.copy()
    grads[:, [site != "a.weight" for site in sites]] = np.nan
    return Trace(
        np.array(steps),
        tuple(sites),
        tuple("conv.weight" if site == "a.weight" else "conv" for site in sites),
        np.full(len(sites), 9),
        {"output_mean": table, "grad_norm": grads},
    )


def assert_equal(one: Trace, other: Trace) -> None:
    assert (one.sites, one.kinds, one.measures) == (other.sites, other.kinds, other.measures)
    np.testing.assert_array_equal(one.steps, other.steps)
    np.testing.assert_array_equal(one.sizes, other.sizes)
    for name in one.measures:
        np.testing.assert_array_equal(one.values[name], other.values[name])


def test_saved_parts_load_as_one_trace_in_depth_order(tmp_path: Path) -> None:
    """Depth order is neither alphabetical nor that of a dictionary, and must survive the disk."""
    first, second = trace((0, 1)), trace((7, 9), start=100)
    first.save_part(tmp_path / "records")
    second.save_part(tmp_path / "records")
    assert_equal(Trace.load(tmp_path), Trace.concat([first, second]))
    assert_equal(Trace.load(tmp_path / "records"), Trace.load(tmp_path))
    assert_equal(load_parts(tmp_path, from_step=2), second)
    assert len(load_parts(tmp_path / "nothing")) == 0


def test_a_site_that_comes_later_stands_after_the_earlier_ones() -> None:
    joined = Trace.concat([trace((0,), ("b", "a")), trace((1,), ("c", "b"))])
    assert joined.sites == ("b", "a", "c")
    assert np.isnan(joined.values["output_mean"][0, 2])
    assert np.isnan(joined.values["output_mean"][1, 1])


def test_select_gives_the_sites_where_a_measure_was_taken() -> None:
    table = trace().select("grad_norm")
    assert table.sites == ("a.weight",)
    np.testing.assert_array_equal(table.values[:, 0], [1, 4, 7])
    assert trace().select("output_mean", ["conv"]).sites == ("b", "a")
    with pytest.raises(KeyError, match="Expected a measure of .*but got 'nope'"):
        trace().select("nope")


def test_a_site_that_was_always_nan_is_not_taken_for_unmeasured() -> None:
    values = {
        "grad_norm": np.array([[np.nan, 1.0]]),
        "grad_nonfinite": np.array([[3.0, 0.0]]),
    }
    broken = Trace(np.array([0]), ("w", "v"), ("conv.weight",) * 2, np.ones(2, int), values)
    assert broken.select("grad_norm").sites == ("w", "v")


def test_frame_has_a_row_per_step_and_site() -> None:
    pytest.importorskip("pandas")
    frame = trace().frame()
    assert list(frame.columns[:4]) == ["step", "site", "kind", "size"]
    assert len(frame) == 9
    row = frame[(frame.step == 1) & (frame.site == "a.weight")].iloc[0]
    assert (row.output_mean, row.grad_norm) == (4, 4)


def test_an_unfinished_file_is_not_read(tmp_path: Path) -> None:
    """A process killed while it writes leaves a temporary file, never half a part."""
    trace().save_part(tmp_path / "records")
    (tmp_path / "records" / ".part-000000099.parquet").write_bytes(b"PAR1 cut off")
    assert len(Trace.load(tmp_path)) == 3
    assert len(pq.read_table(tmp_path / "records")) == 9, "other readers leave it out as well"
    drop_from(tmp_path, 50)
    assert len(list((tmp_path / "records").iterdir())) == 1


def test_drop_from_removes_the_files_of_later_steps(tmp_path: Path) -> None:
    for start in (0, 10, 20):
        trace((start, start + 1)).save_part(tmp_path / "records")
    drop_from(tmp_path, 10)
    assert Trace.load(tmp_path).steps.tolist() == [0, 1]


def test_a_folder_without_records_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gradflow train --log-grads"):
        Trace.load(tmp_path)
    trace().save_part(tmp_path / "plain_34-s0" / "records")
    assert len(Trace.load(tmp_path)) == 3, "a run of one network is that network"
    trace().save_part(tmp_path / "resnet_34-s0" / "records")
    with pytest.raises(ValueError, match="holds plain_34-s0, resnet_34-s0. Load one"):
        Trace.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": {"m": np.zeros((3, 2))}}, r"shape \(steps, sites\) = \(3, 3\), but got"),
        ({"steps": np.array([0, 2, 2])}, "`steps` to increase"),
        ({"sites": ("a", "a", "b")}, "stand in `sites` once"),
        ({"kinds": ("conv",)}, "one kind and one size"),
    ],
)
def test_a_trace_checks_itself(change: dict, message: str) -> None:
    whole = trace()
    fields = {
        "steps": whole.steps,
        "sites": whole.sites,
        "kinds": whole.kinds,
        "sizes": whole.sizes,
        "values": whole.values,
    }
    with pytest.raises(ValueError, match=message):
        Trace(**{**fields, **change})
