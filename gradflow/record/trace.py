"""Trace: what a Recorder recorded, as tables of steps × sites."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.lazy import warn_renamed
from gradflow.record.histograms import Histograms, joined
from gradflow.record.measures import DERIVED, MEASURES
from gradflow.record.part_files import (
    FOLDER,
    PARTS,
    first_step,
    load_skipped_steps,
    parts_of,
    read_histograms,
    read_parts,
    write_part,
)

if TYPE_CHECKING:
    import pandas

# In the order in which a step meets them.
NONFINITE = ("output_nonfinite", "output_grad_nonfinite", "grad_nonfinite")


@dataclass(frozen=True, repr=False)
class Trace:
    """Measures by step and site.

    A site is a layer's output (`layer1.0.conv1`; the second call of a reused module in one forward
    pass is `relu#1`) or a parameter (`layer1.0.conv1.weight`). Sites stand in depth order, input
    first. NaN means "not taken here": a convolution has no update, a frozen parameter no gradient.
    A NaN that was in the data shows in the `…_nonfinite` measure beside it.
    """

    steps: np.ndarray  # (steps,) int64, increasing
    sites: tuple[str, ...]
    kinds: tuple[str, ...]  # (sites,): "conv", "norm", …; of a parameter "conv.weight", …
    sizes: np.ndarray  # (sites,) int64: elements of the parameter, or of the output in one step
    values: dict[str, np.ndarray]  # measure -> (steps, sites) float64
    skipped_steps: tuple[int, ...] = ()  # that came to nothing, as under a GradScaler
    # Site -> the sites and weights that its output was computed from, with no other site between:
    # from the autograd graph of a forward pass. None where that was not to be had.
    feeds: Mapping[str, tuple[str, ...]] | None = None
    # Where a Recorder counted them, in memory; `load_histograms` reads them from files.
    histograms: Histograms | None = None

    def __post_init__(self) -> None:
        want = (len(self.steps), len(self.sites))
        if len(self.kinds) != want[1] or len(self.sizes) != want[1]:
            raise ValueError(
                f"Expected one kind and one size for each of the {want[1]} sites, "
                f"but got {len(self.kinds)} and {len(self.sizes)}."
            )
        if len(set(self.sites)) != want[1]:
            raise ValueError("Expected every site to stand in `sites` once.")
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError("Expected `steps` to increase.")
        for name, table in self.values.items():
            if table.shape != want:
                raise ValueError(
                    f"Expected `values[{name!r}]` to have shape (steps, sites) = {want}, "
                    f"but got {table.shape}."
                )

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        steps = f" from {self.steps[0]} to {self.steps[-1]}" if len(self) else ""
        return (
            f"<Trace of {len(self)} steps{steps}: {len(self.sites)} sites, "
            f"{len(self.values)} measures>"
        )

    def _repr_html_(self) -> str:
        return str(_shown("analysis.notebook").trace_html(self))

    def plot(self, measure: str = "grad_norm", ax: Any = None) -> Any:
        """One measure by depth, at the first and the last recorded step and over all of them.

        Where it was taken at the weights, of the layers on the longest path without the last; else
        of every site that it was taken at. Returns the matplotlib Axes, `ax` where it is given.
        Raises KeyError for another measure, ValueError where it was taken nowhere.
        """
        return _shown("present.figures").plot_trace(self, measure, ax)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the recorded measures, in the order of `MEASURES`."""
        return tuple(sorted(self.values, key=_measure_order))

    def select(self, measure: str, kinds: Sequence[str] | None = None) -> "Table":
        """The sites where `measure` was taken, optionally of some `kinds` only, in depth order.

        Measures of `DERIVED`, such as `relative_update`, are computed from the recorded ones.
        """
        table = self._table(measure)
        # `…_nonfinite` tells a site that was never measured from one that was always NaN.
        taken = ~np.isnan(table).all(axis=0) | self._saw_nonfinite(measure)
        if kinds is not None:
            taken &= np.isin(self.kinds, list(kinds))
        columns = np.flatnonzero(taken)
        return Table(self.steps, tuple(self.sites[i] for i in columns), table[:, columns])

    def _table(self, measure: str) -> np.ndarray:
        """(steps, sites) of a recorded or derived measure. Raises KeyError."""
        if measure in self.values:
            return self.values[measure]
        derived = DERIVED.get(measure)
        if derived is None:
            known = (*self.measures, *DERIVED)
            raise KeyError(f"Expected a measure of {', '.join(known)}, but got {measure!r}.")
        missing = [name for name in derived.needs if name not in self.values]
        if missing:
            raise KeyError(
                f"Expected {' and '.join(missing)} in the trace, which {measure} is computed from. "
                f"Record with `measures=[…, {', '.join(map(repr, missing))}]`."
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            table: np.ndarray = derived.compute(*(self.values[name] for name in derived.needs))
        return table

    def _saw_nonfinite(self, measure: str) -> np.ndarray:
        """(sites,): whether a NaN or inf was counted where `measure` is taken."""
        meaning = MEASURES.get(measure) or DERIVED.get(measure)
        of = meaning.of if meaning is not None else None
        counts = [
            np.nan_to_num(table).any(axis=0)
            for name, table in self.values.items()
            if name in NONFINITE and MEASURES[name].of == of
        ]
        return np.any(counts, axis=0) if counts else np.zeros(len(self.sites), dtype=bool)

    def nonfinite(self) -> "list[NonFinite]":
        """Where NaN and inf appeared, the first appearance first: it is the place to look at.

        Within a step outputs come in the order of the layers, then their gradients from the last
        layer to the first, then the gradients of the parameters, from the last layer too.
        """
        found = []
        for phase, measure in enumerate(NONFINITE):
            table = np.nan_to_num(self.values.get(measure, np.zeros((len(self), len(self.sites)))))
            for site in np.flatnonzero(table.any(axis=0)):
                first = int(np.flatnonzero(table[:, site])[0])
                where = site if phase == 0 else -site
                count = int(table[:, site].sum())
                entry = NonFinite(int(self.steps[first]), self.sites[site], measure, count)
                found.append(((first, phase, where), entry))
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per step and site, one column per measure. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Trace.to_pandas needs pandas. Run `pip install pandas`.") from error
        return pandas.DataFrame(self._columns())

    def frame(self) -> "pandas.DataFrame":
        """The old name of `to_pandas`."""
        warn_renamed("`Trace.frame`", "`to_pandas`")
        return self.to_pandas()

    def save_part(self, folder: Path) -> Path:
        """Write the trace as one Parquet file into `folder`, all of it or nothing.

        One row per step and site, in depth order; the file is named after its first step.
        """
        columns = self._columns(self.histograms)
        return write_part(folder, columns, self.feeds)

    def _columns(self, histograms: Histograms | None = None) -> dict[str, Any]:
        """The long form as columns, without the rows where nothing was taken."""
        names = self.measures
        with np.errstate(over="ignore"):  # squares beyond float32 are written as inf
            tables = {name: self.values[name].astype(np.float32) for name in names}
        taken = np.zeros((len(self.steps), len(self.sites)), dtype=bool)
        for table in tables.values():
            taken |= ~np.isnan(table)
        counts = {} if histograms is None else histograms.cells(self.steps, self.sites)
        for cells in counts.values():
            for at in cells:
                taken[at] = True
        step_index, site_index = np.nonzero(taken)
        places = list(zip(step_index.tolist(), site_index.tolist(), strict=True))
        return {
            "step": self.steps[step_index],
            "site": np.asarray(self.sites, dtype=object)[site_index],
            "kind": np.asarray(self.kinds, dtype=object)[site_index],
            "size": self.sizes[site_index],
            **{name: table[taken] for name, table in tables.items()},
            **{name: [cells.get(at) for at in places] for name, cells in counts.items()},
        }

    @staticmethod
    def load(run: str | os.PathLike[str], measures: Sequence[str] | None = None) -> "Trace":
        """Read the trace of one trained network: its folder, or the `records` folder inside it.

        With `measures`, only these, as far as they were recorded: faster where the trace is long.
        Raises FileNotFoundError where nothing was recorded, ValueError for a run of several
        networks (it names them).
        """
        folder = Path(run)
        if parts_of(folder):
            return load_parts(folder, measures=measures)
        networks = sorted({path.parent.parent for path in folder.glob(f"*/{FOLDER}/{PARTS}")})
        if len(networks) == 1:
            return load_parts(networks[0], measures=measures)
        if networks:
            names = ", ".join(path.name for path in networks)
            raise ValueError(
                f"Expected one network, but {folder} holds {names}. Load one of its folders."
            )
        raise FileNotFoundError(
            f"No records in {folder}. Record some with `gradflow train --log-grads`, or with "
            "Recorder(model, optimizer, folder=…)."
        )

    @staticmethod
    def concat(traces: Iterable["Trace"]) -> "Trace":
        """One trace after the other; a site that comes up later stands after the earlier ones."""
        traces = list(traces)
        if not traces:
            return Trace(np.zeros(0, np.int64), (), (), np.zeros(0, np.int64), {})
        facts = {
            site: (kind, size)
            for trace in reversed(traces)
            for site, kind, size in zip(trace.sites, trace.kinds, trace.sizes, strict=True)
        }
        sites = tuple(dict.fromkeys(site for trace in traces for site in trace.sites))
        column = {site: i for i, site in enumerate(sites)}
        measures = dict.fromkeys(name for trace in traces for name in trace.values)
        n_steps = sum(len(trace) for trace in traces)
        values = {name: np.full((n_steps, len(sites)), np.nan) for name in measures}
        start = 0
        for trace in traces:
            columns = [column[site] for site in trace.sites]
            for name, table in trace.values.items():
                values[name][start : start + len(trace), columns] = table
            start += len(trace)
        return Trace(
            np.concatenate([trace.steps for trace in traces]),
            sites,
            tuple(facts[site][0] for site in sites),
            np.array([facts[site][1] for site in sites], dtype=np.int64),
            values,
            tuple(step for trace in traces for step in trace.skipped_steps),
            _merged([trace.feeds for trace in traces]),
            joined([trace.histograms for trace in traces]),
        )

    def with_skipped(self, steps: Iterable[int]) -> "Trace":
        """The same trace, which knows these skipped steps."""
        return replace(self, skipped_steps=tuple(steps))


@dataclass(frozen=True)
class NonFinite:
    """NaN or inf at one site."""

    first_step: int
    site: str
    measure: str  # the count that found it: `output_nonfinite`, …
    count: int  # elements, over all recorded steps


@dataclass(frozen=True)
class Table:
    """One measure: the sites where it was taken, in depth order."""

    steps: np.ndarray  # (steps,)
    sites: tuple[str, ...]
    values: np.ndarray  # (steps, sites)


def _shown(module: str) -> Any:
    """What shows a trace knows more than what records it, and is looked up when it is asked for."""
    return import_module(f"gradflow.{module}")


def load_parts(run: Path, *, from_step: int = 0, measures: Sequence[str] | None = None) -> Trace:
    """The record files of a network that begin at `from_step` or later; an empty trace if none."""
    parts = [part for part in parts_of(run) if first_step(part) >= from_step]
    skipped = [step for step in load_skipped_steps(run) if step >= from_step]
    if not parts:
        return Trace.concat([]).with_skipped(skipped)
    wide, feeds = read_parts(parts, measures)
    return Trace(*wide, tuple(skipped), _merged(feeds))


def load_histograms(
    run: str | os.PathLike[str], *, from_step: int = 0, at_most: int | None = None
) -> Histograms | None:
    """The histograms of one network: its folder, or the `records` folder inside it.

    Of the files that begin at `from_step` or later; None where none were counted. `at_most` so many
    steps are read, evenly spaced, of which the last is the last one.
    """
    parts = [part for part in parts_of(Path(run)) if first_step(part) >= from_step]
    if at_most is None or not parts:
        return read_histograms(parts)
    begins = np.array([first_step(part) for part in parts])
    among = np.searchsorted(begins, _evenly(begins, at_most), side="right") - 1
    found = read_histograms([parts[i] for i in np.unique(among)])
    if found is None:
        return None
    wanted = _evenly(found.steps, at_most)[:, np.newaxis]
    return found.part(np.unique(np.abs(found.steps - wanted).argmin(axis=1)))


def _evenly(steps: np.ndarray, n: int) -> np.ndarray:
    """n places from the last step back to the first."""
    return np.linspace(steps[-1], steps[0], n)


def load_last(run: Path) -> Trace | None:
    """The last record file of a network alone; None where there is none."""
    parts = parts_of(run)
    return load_parts(run, from_step=first_step(parts[-1])) if parts else None


def _merged(
    feeds: Sequence[Mapping[str, tuple[str, ...]] | None],
) -> dict[str, tuple[str, ...]] | None:
    """Of all parts; None where one has none, so that its sites have no place."""
    known = [one for one in feeds if one is not None]
    if not known or len(known) < len(feeds):
        return None
    return {site: behind for one in known for site, behind in one.items()}


def _measure_order(name: str) -> tuple[int, str]:
    known = list(MEASURES)
    return (known.index(name) if name in MEASURES else len(known), name)
