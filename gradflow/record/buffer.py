"""Recorded steps on their way: kept on the device, brought to the host, written, and shown."""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gradflow.record.part_files import FOLDER, load_skipped_steps, save_skipped_steps
from gradflow.record.readable import NotTaken
from gradflow.record.schedule import Stopwatch
from gradflow.record.steps import DeadChannels, RecordedStep
from gradflow.record.trace import Trace, load_parts

# Recorded steps that are kept on the device before they are written: few enough to lose little
# when a process is killed, enough to make files of a useful size.
BUFFER_STEPS = 64
# Those who watch are told so seldom:
EVERY_SECONDS = 0.5  # faster than one reads
MAX_SHARE = 0.005  # of the time, so that it stays well below a hundredth

Show = Callable[[Trace], None]


class Buffer:
    """The recorded steps that are not written yet, and the files of those that are.

    `read` brings some steps to the host. Without a folder all of them stay in memory.
    """

    def __init__(
        self,
        folder: Path | None,
        is_first: bool,
        read: Callable[[Sequence[RecordedStep], DeadChannels], Trace],
        watchers: "Watchers",
        stopwatch: Stopwatch,
    ) -> None:
        self.pending: list[RecordedStep] = []
        self.dead = DeadChannels()
        self.skipped_steps = load_skipped_steps(folder) if folder is not None else []
        self.watchers = watchers
        self._stopwatch = stopwatch
        self._folder = folder
        self._writes = folder is not None and is_first
        self._read = read
        self._flushed: list[Trace] = []

    def trace(self) -> Trace:
        """Everything so far."""
        self.flush()
        if self._folder is not None:
            return load_parts(self._folder)
        return Trace.concat(self._flushed).with_skipped(self.skipped_steps)

    def flush(self) -> Trace | None:
        """Bring what is pending to the host, write it, and return it (None if there is nothing)."""
        start = time.perf_counter()
        self.skipped_steps += [step.step for step in self.pending if step.was_skipped()]
        if not self.pending:
            self._write()
            return None
        chunk = self._read(self.pending, self.dead)
        n_steps = len(self.pending)
        self.pending = []
        self._flushed.append(chunk)
        self._write()
        self.watchers.tell(lambda: chunk.with_skipped(self.skipped_steps))
        self._stopwatch.flushed(n_steps, time.perf_counter() - start)
        return chunk

    def flush_if_full(self) -> None:
        if len(self.pending) >= BUFFER_STEPS:
            self.flush()

    def show_recent(self) -> None:
        """To those who watch, if it is time, what is not written yet; it stays."""
        if self.watchers.is_due():
            self.watchers.tell(self._recent)

    def _recent(self) -> Trace | None:
        if not self.pending:
            return None
        skipped = [step.step for step in self.pending if step.was_skipped()]
        recent = self._read(self.pending, copy.deepcopy(self.dead))
        return recent.with_skipped([*self.skipped_steps, *skipped])

    def _write(self) -> None:
        """To the files what is not there yet."""
        if self._folder is None or not self._writes:
            return
        save_skipped_steps(self._folder / FOLDER, self.skipped_steps)
        while self._flushed:
            self._flushed[0].save_part(self._folder / FOLDER)
            del self._flushed[0]


class Watchers:
    """Calls functions with the latest records, and the less often, the longer that takes."""

    def __init__(self, not_taken: NotTaken) -> None:
        self._not_taken = not_taken
        self._shows: list[Show] = []
        self._next = 0.0

    def add(self, show: Show) -> None:
        self._shows.append(show)
        self._next = 0.0

    def is_due(self) -> bool:
        return bool(self._shows) and time.perf_counter() >= self._next

    def tell(self, read: Callable[[], Trace | None]) -> None:
        """Show what `read` gives; its time counts. Who raises is not called again."""
        start = time.perf_counter()
        trace = read() if self._shows else None
        for show in self._shows[:]:
            if trace is None:
                break
            try:
                show(trace)
            except Exception as error:
                self._shows.remove(show)
                self._not_taken.failed("what is shown", error)
        now = time.perf_counter()
        self._next = now + max(EVERY_SECONDS, (now - start) / MAX_SHARE)


def check_folder_is_free(folder: Path | None, first_step: int) -> None:
    """Records of two trainings in one folder would read as one."""
    later = len(load_parts(folder, from_step=first_step)) if folder is not None else 0
    if later:
        raise FileExistsError(
            f"Expected no records from step {first_step} on in {folder}, but it holds {later} "
            "recorded steps. Give another folder, remove them, or give the `first_step` at which "
            "training goes on."
        )
