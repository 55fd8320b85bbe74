"""An event file, read back by TensorBoard's own EventAccumulator."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from gradflow.present.tracking.rows import step_rows
from gradflow.present.tracking.tensorboard_sink import TensorBoardSink
from tests.present.epochs import Memory, Training, epoch_of, trace_of, with_histograms


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def text(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return str(tensor_util.make_ndarray(event.tensor_proto).item().decode())


def test_an_event_file_holds_what_any_sink_is_told(tmp_path: Path) -> None:
    memory = Memory()
    training = Training(TensorBoardSink(tmp_path), memory)
    training.epoch((2.0, 1.5))
    training.epoch((1.0, 0.5), val_accuracy=0.75)
    training.log.close({"best/test_accuracy": 0.8})
    events = read(tmp_path)

    told = {key for _, _, row in memory.rows for key in row}
    assert set(events.Tags()["scalars"]) == told
    assert scalars(events, "train/loss") == [(0, 2.0), (1, 1.5), (2, 1.0), (3, 0.5)]
    assert scalars(events, "val/accuracy") == [(2, 0.5), (4, 0.75)]
    rows = step_rows(epoch_of(0, 2, (2.0, 1.5)), trace_of([0, 1]), 1000)
    expected = rows[1]["stage/layer1/weight"]
    assert dict(scalars(events, "stage/layer1/weight"))[1] == pytest.approx(expected)
    profile = scalars(events, "profile/output_gradient")
    assert [layer for layer, _ in profile] == [0, 1, 2]
    assert profile[0][1] == pytest.approx((1.1 * 2.1 * 3.1 * 4.1) ** 0.25)
    assert set(events.Tags()["images"]) == {"gradient/heatmap", "gradient/depth_profile"}
    last = events.Images("gradient/heatmap")[-1]
    with Image.open(io.BytesIO(last.encoded_image_string)) as image:
        assert (last.step, image.width) == (4, 700)
    assert "| best/test_accuracy | 0.8 |" in text(events, "summary")


def test_histograms_of_the_last_step_stand_on_an_axis_of_powers_of_two(tmp_path: Path) -> None:
    training = Training(TensorBoardSink(tmp_path), recorded=with_histograms)
    training.epoch()
    training.log.close({})
    events = read(tmp_path)
    layers = ("00.conv1", "01.layer1.0.conv1", "02.layer1.0.conv2", "03.fc")
    assert events.Tags()["histograms"] == [
        f"histogram/{layer}/{kind}" for layer in layers for kind in ("weight", "gradient")
    ]
    (event,) = events.Histograms("histogram/02.layer1.0.conv2/gradient")
    found = event.histogram_value
    # 4 elements from 2^0 to 2^1, 4 from 2^2 to 2^3: its place among the parameters
    assert (event.step, found.min, found.max, found.num) == (1, 0.0, 3.0, 8.0)
    assert (found.bucket_limit, found.bucket) == ([1.0, 2.0, 3.0], [4.0, 0.0, 4.0])
    assert (found.sum, found.sum_squares) == (4 * 0.5 + 4 * 2.5, 4 * 0.25 + 4 * 6.25)


def test_numbers_tables_and_pictures_stay_what_they_are(tmp_path: Path) -> None:
    """NaN and inf too; a table is Markdown, which no bar in a cell breaks."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    sink = TensorBoardSink(tmp_path)
    sink.log({"train/loss": math.nan, "lr": math.inf}, 0)
    sink.table("verdict/findings", ("key", "p"), [("a|b\nc", 0.25), ("‖∂L/∂z‖", math.nan)])
    sink.picture("gradient/heatmap", pixels, 3)
    sink.finish({})
    events = read(tmp_path)
    assert math.isnan(events.Scalars("train/loss")[0].value)
    assert events.Scalars("lr")[0].value == math.inf
    lines = text(events, "verdict/findings").splitlines()
    assert lines == ["| key | p |", "|---|---|", r"| a\|b c | 0.25 |", "| ‖∂L/∂z‖ | nan |"]
    (event,) = events.Images("gradient/heatmap")
    with Image.open(io.BytesIO(event.encoded_image_string)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_resumed_training_hides_the_steps_that_are_trained_again(tmp_path: Path) -> None:
    killed = TensorBoardSink(tmp_path)
    for step in range(6):
        killed.log({"train/loss": 10.0 + step}, step)
    killed.finish({}, failed=True)
    resumed = TensorBoardSink(tmp_path, first_step=4)
    for step in range(4, 8):
        resumed.log({"train/loss": 20.0 + step}, step)
    resumed.finish({})
    found = scalars(read(tmp_path), "train/loss")
    assert found == [(i, 10.0 + i) for i in range(4)] + [(i, 20.0 + i) for i in range(4, 8)]
