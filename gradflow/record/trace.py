"""Trace: what a Recorder recorded, as tables of steps × sites."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.files import (
    DamagedFile,
    drop_unfinished,
    read_json,
    refuse_no_file,
    whole,
    write_text,
)
from gradflow.lazy import lazy
from gradflow.record.measures import DERIVED, MEASURES
from gradflow.typed import typed

if TYPE_CHECKING:
    import pandas

FOLDER = "records"
PART = "part-{step:09d}.parquet"
PARTS = f"part-{'[0-9]' * 9}.parquet"  # as PART, and no other name
LEAVE_OUT = "Leave this network out, or train it anew."
SKIPPED = "_skipped-steps.json"  # readers of a folder of Parquet files leave such names out
FEEDS = "gradflow.feeds"  # beside the columns of a Parquet file
KEYS = ("step", "site", "kind", "size")  # the columns that are not measures
_SIZES = ("_norm", "_rms", "_fraction", "_max_abs", "_nonfinite")
NEVER_NEGATIVE = {"size", *(name for name in MEASURES if name.endswith(_SIZES))}


# What shows a trace knows more than what records it, and is looked up when it is asked for.
_shown = lazy(
    "gradflow", {"analysis.notebook": ("trace_html",), "present.figures": ("plot_trace",)}
)

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
        return str(_shown("trace_html")(self))

    def plot(self, measure: str = "grad_norm", ax: Any = None) -> Any:
        """One measure by depth, at the first and the last recorded step and over all of them.

        Where it was taken at the weights, of the layers on the longest path without the last; else
        of every site that it was taken at. Returns the matplotlib Axes, `ax` where it is given.
        Raises KeyError for another measure, ValueError where it was taken nowhere.
        """
        return _shown("plot_trace")(self, measure, ax)

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

    def frame(self) -> "pandas.DataFrame":
        """One row per step and site, one column per measure. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Trace.frame needs pandas. Run `pip install pandas`.") from error
        return pandas.DataFrame(self._columns())

    def save_part(self, folder: Path) -> Path:
        """Write the trace as one Parquet file into `folder`, all of it or nothing.

        One row per step and site, in depth order; the file is named after its first step.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = self._columns()
        arrays = {
            name: pa.array(column).dictionary_encode()
            if name in ("site", "kind")
            else pa.array(column, from_pandas=True)
            for name, column in columns.items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PART.format(step=int(self.steps[0]))
        # Readers of a folder of Parquet files leave out names that begin with a dot.
        table = pa.table(arrays)
        if self.feeds is not None:
            table = table.replace_schema_metadata({FEEDS: json.dumps(self.feeds)})
        with whole(path) as unfinished:
            pq.write_table(table, unfinished, compression="zstd")
        return path

    def _columns(self) -> dict[str, Any]:
        """The long form as columns, without the rows where nothing was taken."""
        names = self.measures
        with np.errstate(over="ignore"):  # squares beyond float32 are written as inf
            tables = {name: self.values[name].astype(np.float32) for name in names}
        taken = np.zeros((len(self.steps), len(self.sites)), dtype=bool)
        for table in tables.values():
            taken |= ~np.isnan(table)
        step_index, site_index = np.nonzero(taken)
        return {
            "step": self.steps[step_index],
            "site": np.asarray(self.sites, dtype=object)[site_index],
            "kind": np.asarray(self.kinds, dtype=object)[site_index],
            "size": self.sizes[site_index],
            **{name: table[taken] for name, table in tables.items()},
        }

    @staticmethod
    def load(run: str | os.PathLike[str], measures: Sequence[str] | None = None) -> "Trace":
        """Read the trace of one trained network: its folder, or the `records` folder inside it.

        With `measures`, only these, as far as they were recorded: faster where the trace is long.
        Raises FileNotFoundError where nothing was recorded, ValueError for a run of several
        networks (it names them).
        """
        folder = Path(run)
        if _parts(folder):
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


def load_parts(run: Path, *, from_step: int = 0, measures: Sequence[str] | None = None) -> Trace:
    """The record files of a network that begin at `from_step` or later; an empty trace if none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [part for part in _parts(run) if _first_step(part) >= from_step]
    skipped = [step for step in load_skipped_steps(run) if step >= from_step]
    if not parts:
        return Trace.concat([]).with_skipped(skipped)
    # By name, part after part: the first appearance of a site gives its depth.
    tables, feeds = [], []
    last_step = -1
    for path in parts:
        refuse_no_file(path, "records of a Recorder", LEAVE_OUT)
        try:
            with pq.ParquetFile(path) as part:
                names = part.schema_arrow.names
                wanted = names if measures is None else [*KEYS, *measures]
                table = part.read([name for name in names if name in wanted])
            last_step = _check_table(table, last_step)
            feeds.append(_feeds(table.schema.metadata))
            tables.append(table.replace_schema_metadata())
        except (pa.ArrowException, LookupError, ValueError, TypeError, OSError) as error:
            raise DamagedFile(path, "records of a Recorder", error, LEAVE_OUT) from None
    whole_table = pa.concat_tables(tables, promote_options="default")
    return replace(_from_table(whole_table), skipped_steps=tuple(skipped), feeds=_merged(feeds))


def load_last(run: Path) -> Trace | None:
    """The last record file of a network alone; None where there is none."""
    parts = _parts(run)
    return load_parts(run, from_step=_first_step(parts[-1])) if parts else None


def _feeds(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]] | None:
    """What `save_part` wrote beside the columns; None in the records of older versions."""
    text = (metadata or {}).get(FEEDS.encode())
    if text is None:
        return None
    found = typed(json.loads(text), dict[str, list[str]], FEEDS)
    return {site: tuple(behind) for site, behind in found.items()}


def _merged(
    feeds: Sequence[Mapping[str, tuple[str, ...]] | None],
) -> dict[str, tuple[str, ...]] | None:
    """Of all parts; None where one has none, so that its sites have no place."""
    known = [one for one in feeds if one is not None]
    if not known or len(known) < len(feeds):
        return None
    return {site: behind for one in known for site, behind in one.items()}


def _check_table(table: Any, last_step: int) -> int:
    """The last step of one record file, if it is one and begins after `last_step`: ValueError."""
    import pyarrow as pa

    if missing := set(KEYS) - set(table.column_names):
        raise ValueError(f"it has no column {', '.join(sorted(missing))}")
    for name in table.column_names:
        kind = table[name].type
        is_text = pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)
        wanted, holds = {
            "step": ("int64", pa.types.is_int64(kind)),
            "size": ("int64", pa.types.is_int64(kind)),
            "site": ("text in a dictionary", is_text),
            "kind": ("text in a dictionary", is_text),
        }.get(name, ("floating point", pa.types.is_floating(kind)))
        if not holds or (name in KEYS and table[name].null_count):
            raise ValueError(f"column {name} is of {kind} and may be empty, not {wanted}")
        if name in NEVER_NEGATIVE and np.any(table[name].to_numpy() < 0):
            raise ValueError(f"column {name} has values below 0")
    steps = table["step"].to_numpy()
    if not len(steps) or steps[0] <= last_step or np.any(np.diff(steps) < 0):
        raise ValueError(f"its steps do not increase from {last_step + 1} on")
    return int(steps[-1])


def load_skipped_steps(run: Path) -> list[int]:
    """The skipped steps of a network's folder, or of its `records` folder itself."""
    for path in (run / FOLDER / SKIPPED, run / SKIPPED):
        if path.exists():
            found: list[int] = read_json(path, list[int], "a list of skipped steps", LEAVE_OUT)
            return found
    return []


def save_skipped_steps(folder: Path, steps: Sequence[int]) -> None:
    """Write the list into `folder` where it changed, all of it or nothing."""
    path = folder / SKIPPED
    if not steps and not path.exists():
        return
    text = json.dumps(list(steps))
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _parts(run: Path) -> list[Path]:
    """The record files in a network's folder, or in its `records` folder itself, oldest first."""
    return sorted((run / FOLDER).glob(PARTS)) or sorted(run.glob(PARTS))


def drop_from(run: Path, step: int) -> None:
    """Remove the record files that begin at `step` or later, so that training can go on there."""
    drop_unfinished(run / FOLDER)
    for part in _parts(run):
        if _first_step(part) >= step:
            part.unlink()
    if skipped := load_skipped_steps(run):
        save_skipped_steps(run / FOLDER, [one for one in skipped if one < step])


def _first_step(part: Path) -> int:
    return int(part.stem.removeprefix("part-"))


def _from_table(table: Any) -> Trace:
    """The wide form of the long Parquet columns."""
    row_steps = table["step"].to_numpy()
    # Rows stand step by step, so that nothing needs sorting.
    is_new = np.diff(row_steps, prepend=row_steps[0] - 1) != 0
    steps, step_index = row_steps[is_new], np.cumsum(is_new) - 1
    encoded = table["site"].unify_dictionaries().combine_chunks()
    codes = encoded.indices.to_numpy()
    names = encoded.dictionary.to_pylist()
    first = np.full(len(names), len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # the last to be written is the first row
    order = np.argsort(first)[: np.count_nonzero(first < len(codes))]  # by depth; no unused name
    first = first[order]
    column = np.zeros(len(names), dtype=np.int64)
    column[order] = np.arange(len(order))
    cell = step_index * len(order) + column[codes]
    values = {}
    for name in table.column_names:
        if name in KEYS:
            continue
        wide = np.full(len(steps) * len(order), np.nan)
        wide[cell] = table[name].to_numpy()
        values[name] = wide.reshape(len(steps), len(order))
    return Trace(
        steps.astype(np.int64),
        tuple(names[code] for code in order),
        tuple(table["kind"].take(first).to_pylist()),
        table["size"].to_numpy()[first],
        values,
    )


def _measure_order(name: str) -> tuple[int, str]:
    known = list(MEASURES)
    return (known.index(name) if name in MEASURES else len(known), name)
