"""Trace: shapes checked, files complete, depth order kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from byhand import assert_same_trace
from loops import recorded

from gradflow import Trace
from gradflow.record.part_files import drop_from, load_skipped_steps, save_skipped_steps
from gradflow.record.trace import load_parts
from tests.analysis.traces import make_trace


def trace(steps=(0, 1, 2), sites=("b", "a.weight", "a"), start: float = 0.0) -> Trace:
    table = start + np.arange(len(steps) * len(sites), dtype=float).reshape(len(steps), -1)
    is_weight = [site == "a.weight" for site in sites]
    return replace(
        with_values({"output_mean": table, "grad_norm": np.where(is_weight, table, np.nan)}, sites),
        steps=np.array(steps),
        kinds=tuple("conv.weight" if site == "a.weight" else "conv" for site in sites),
    )


def with_values(values: dict[str, Any], sites: tuple[str, ...]) -> Trace:
    tables = {name: np.array(table, dtype=float) for name, table in values.items()}
    steps = np.arange(len(next(iter(tables.values()))))
    sizes = np.full(len(sites), 9)
    return Trace(steps, tuple(sites), ("linear.weight",) * len(sites), sizes, tables)


def test_saved_parts_load_as_one_trace_in_depth_order(tmp_path: Path) -> None:
    """Depth order is neither alphabetical nor that of a dictionary, and must survive the disk."""
    first, second = trace((0, 1)), trace((7, 9), start=100)
    first.save_part(tmp_path / "records")
    second.save_part(tmp_path / "records")
    assert_same_trace(Trace.load(tmp_path), Trace.concat([first, second]))
    assert_same_trace(Trace.load(tmp_path / "records"), Trace.load(tmp_path))
    assert_same_trace(load_parts(tmp_path, from_step=2), second)
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
    """Nor is one of what is derived from it."""
    nan = np.nan
    recorded = with_values(
        {"grad_norm": [[nan, 1.0]], "weight_norm": [[1.0, 2.0]], "grad_nonfinite": [[7.0, 0.0]]},
        ("broken", "whole"),
    )
    for measure in ("grad_norm", "scale_invariant_grad"):
        assert recorded.select(measure).sites == ("broken", "whole")


def test_frame_has_a_row_per_step_and_site() -> None:
    pytest.importorskip("pandas")
    frame = trace().to_pandas()
    assert list(frame.columns[:4]) == ["step", "site", "kind", "size"]
    assert len(frame) == 9
    row = frame[(frame.step == 1) & (frame.site == "a.weight")].iloc[0]
    assert (row.output_mean, row.grad_norm) == (4, 4)


def test_an_unfinished_file_is_not_read(tmp_path: Path) -> None:
    """A process killed while it writes leaves a temporary file, never half a part."""
    trace().save_part(tmp_path / "records")
    (tmp_path / "records" / ".unfinished-99.parquet").write_bytes(b"PAR1 cut off")
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
    with pytest.raises(ValueError, match=message):
        replace(trace(), **change)


# -- derived measures --------------------------------------------------------------------------


def test_select_computes_derived_measures_from_the_recorded_ones() -> None:
    recorded = with_values(
        {
            "update_norm": [[1.0, np.nan, 3.0], [2.0, np.nan, 1.0]],
            "weight_norm": [[2.0, 5.0, 4.0], [4.0, 5.0, 0.0]],
            "grad_dot_update": [[-1.0, np.nan, 3.0], [0.0, np.nan, 0.0]],
        },
        ("a", "frozen", "b"),
    )
    table = recorded.select("relative_update")
    assert table.sites == ("a", "b"), "what was not recorded at a site is not derived there"
    np.testing.assert_array_equal(table.values, [[0.5, 0.75], [0.5, np.inf]])
    np.testing.assert_array_equal(
        recorded.select("loss_share").values, [[0.25, 0.75], [np.nan, np.nan]]
    )
    assert "relative_update" not in recorded.measures


def test_a_derived_measure_tells_what_must_be_recorded_for_it() -> None:
    recorded = with_values({"weight_norm": [[1.0]]}, ("a",))
    message = r"Expected update_norm in the trace.*Record with `measures=\[…, 'update_norm'\]`"
    with pytest.raises(KeyError, match=message):
        recorded.select("relative_update")
    with pytest.raises(KeyError, match="Expected grad_noise and grad_signal in the trace"):
        recorded.select("grad_snr")


# -- NaN and inf -------------------------------------------------------------------------------


def test_nonfinite_names_the_place_to_look_at_first() -> None:
    """By step; in a step the outputs forward, then gradients backward, then the parameters'."""
    nan, sites = np.nan, ("first", "first.weight", "last", "last.weight")
    recorded = with_values(
        {
            "grad_nonfinite": [[nan, 0, nan, 0], [nan, 6, nan, 5], [nan, 1, nan, 1]],
            "output_grad_nonfinite": [[0, nan, 0, nan], [4, nan, 3, nan], [1, nan, 1, nan]],
            "output_nonfinite": [[0, nan, 0, nan], [1, nan, 2, nan], [1, nan, 1, nan]],
        },
        sites,
    )
    found = [(one.first_step, one.site, one.measure, one.count) for one in recorded.nonfinite()]
    assert found == [
        (1, "first", "output_nonfinite", 2),
        (1, "last", "output_nonfinite", 3),
        (1, "last", "output_grad_nonfinite", 4),
        (1, "first", "output_grad_nonfinite", 5),
        (1, "last.weight", "grad_nonfinite", 6),
        (1, "first.weight", "grad_nonfinite", 7),
    ]


# -- skipped steps -----------------------------------------------------------------------------


def test_skipped_steps_are_saved_loaded_and_dropped(tmp_path: Path) -> None:
    for start in (0, 10):
        trace((start, start + 1)).save_part(tmp_path / "records")
    save_skipped_steps(tmp_path / "records", [3, 10, 12])
    assert load_skipped_steps(tmp_path) == [3, 10, 12]
    assert Trace.load(tmp_path).skipped_steps == (3, 10, 12)
    assert Trace.load(tmp_path / "records").skipped_steps == (3, 10, 12)
    assert load_parts(tmp_path, from_step=10).skipped_steps == (10, 12)
    drop_from(tmp_path, 10)
    assert load_skipped_steps(tmp_path) == [3]
    drop_from(tmp_path, 0)
    assert load_skipped_steps(tmp_path) == []


# -- files -------------------------------------------------------------------------------------


def test_parts_with_other_measures_load_together(tmp_path: Path) -> None:
    """A training that goes on with a new version, or other `measures`, is one trace."""
    first, second = trace((0, 1)), trace((5, 6), ("b", "a.weight", "a", "new"))
    mean = second.values["output_mean"]
    second = replace(second, values={"output_mean": mean, "mine": mean + 1})
    for part in (first, second):
        part.save_part(tmp_path / "records")
    whole = Trace.load(tmp_path)
    assert_same_trace(whole, Trace.concat([first, second]))
    assert whole.measures == ("output_mean", "grad_norm", "mine")
    assert np.isnan(whole.values["grad_norm"][2:]).all()
    assert np.isnan(whole.values["mine"][:2]).all()
    assert whole.select("mine").sites == second.sites


def test_numbers_beyond_float32_are_written_without_a_warning(tmp_path: Path) -> None:
    """Squared gradients of a training that diverges; the warning would come from its loop."""
    with_values({"grad_noise": [[1e39]]}, ("a",)).save_part(tmp_path / "records")
    assert Trace.load(tmp_path).values["grad_noise"][0, 0] == np.inf


def test_skipped_steps_outlive_a_stop(tmp_path: Path) -> None:
    """A Recorder that goes on in a folder must not write over what the one before it listed."""
    save_skipped_steps(tmp_path / "records", [3])
    model = torch.nn.Linear(1, 1)
    recorded(model, lambda _: model(torch.ones(1, 1)).sum(), folder=tmp_path, first_step=5)
    assert Trace.load(tmp_path).skipped_steps == (3,)


def test_a_trace_of_an_older_version_loads() -> None:
    """Written when a sample of the batch could be measured, with columns of standard errors."""
    old = Trace.load(Path(__file__).with_name("old_trace"))
    assert old.sites[:4] == ("0", "0.weight", "0.bias", "1")
    assert old.skipped_steps == (1,)
    assert old.values["grad_norm"][:, 1].tolist() == pytest.approx([0.53248829, 0.54176491])
    assert old.select("output_rms_se").values[:, 0].tolist() == pytest.approx(
        [0.07128870, 0.01961739]
    )
    assert old.measures[-1] == "output_zero_fraction_se"
    assert old.nonfinite() == []


def test_a_trace_says_in_one_line_what_it_is_and_draws_itself() -> None:
    trace = make_trace({"grad_norm": [1.0, 2.0], "output_zero_fraction": 0.5}, ["conv1", "conv2"])
    assert repr(trace) == "<Trace of 20 steps from 0 to 19: 10 sites, 2 measures>"
    assert repr(Trace.concat([])) == "<Trace of 0 steps: 0 sites, 0 measures>"
    drawn = trace.plot()
    assert [line.get_label() for line in drawn.lines][:2] == ["step 0", "step 19"]
    assert list(drawn.lines[0].get_ydata()) == [1.0, 2.0]
    with pytest.raises(KeyError, match="Expected a measure of"):
        trace.plot("loss")
