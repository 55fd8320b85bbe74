"""TensorBoard: one run as an event file. The only module that imports tensorboard."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter, SummaryWriter

from gradflow.present.markdown import table_text
from gradflow.present.section import TextTable
from gradflow.present.tracking.sink import STEP, Cell


class TensorBoardSink:
    """An event file in `folder`, which TensorBoard shows as a run of that name.

    Numbers on any axis are scalars at that step: TensorBoard has one axis for each tag. After a
    resume, `first_step` hides what an interrupted training logged at that step and later.
    """

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)
        events = self._writer.file_writer
        assert events is not None
        self._events: FileWriter = events

    def log(self, values: Mapping[str, float], at: int, axis: str = STEP) -> None:
        # One event for all: `add_scalar` writes one for each, which takes several times as long.
        found = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._events.add_summary(Summary(value=found), at)

    def histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, at: int) -> None:
        middles = (edges[:-1] + edges[1:]) / 2  # as near as counts tell
        self._writer.add_histogram_raw(
            key,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=int(counts.sum()),
            sum=float(counts @ middles),
            sum_squares=float(counts @ middles**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=at,
        )

    def picture(self, key: str, pixels: np.ndarray, at: int) -> None:
        self._writer.add_image(key, pixels, at, dataformats="HWC")

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        texts = [[_text(value) for value in row] for row in rows]
        self._writer.add_text(key, table_text(TextTable(columns, texts, n_left=len(columns))))

    def finish(self, summary: Mapping[str, Cell], *, failed: bool = False) -> None:
        """TensorBoard has no summary of a run: it becomes the text `summary`."""
        if summary:
            self.table("summary", ("key", "value"), list(summary.items()))
        self._writer.close()


def _text(value: Cell) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
