"""The record files of a network: Parquet, one row per step and site, and the steps that came to
nothing. The only module that knows their names."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradflow.files import (
    DamagedFile,
    drop_unfinished,
    read_json,
    refuse_no_file,
    whole,
    write_text,
)
from gradflow.record.histograms import HISTOGRAMS, N_BINS, Histograms, joined, occupied
from gradflow.record.measures import MEASURES
from gradflow.typed import typed

FOLDER = "records"
PART = "part-{step:09d}.parquet"
PARTS = f"part-{'[0-9]' * 9}.parquet"  # as PART, and no other name
LEAVE_OUT = "Leave this network out, or train it anew."
SKIPPED = "_skipped-steps.json"  # readers of a folder of Parquet files leave such names out
FEEDS = "gradflow.feeds"  # beside the columns of a Parquet file
KEYS = ("step", "site", "kind", "size")  # the columns that are not measures
_SIZES = ("_norm", "_rms", "_fraction", "_max_abs", "_nonfinite")
NEVER_NEGATIVE = {"size", *(name for name in MEASURES if name.endswith(_SIZES))}


class Wide(NamedTuple):
    """Some record files as tables: the first five fields of a Trace."""

    steps: np.ndarray
    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: np.ndarray
    values: dict[str, np.ndarray]


def write_part(
    folder: Path, columns: Mapping[str, Any], feeds: Mapping[str, tuple[str, ...]] | None
) -> Path:
    """One record file, all of it or nothing, named after its first step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {
        name: pa.array(column).dictionary_encode()
        if name in ("site", "kind")
        else pa.array(column, pa.list_(pa.int64()))
        if name in HISTOGRAMS
        else pa.array(column, from_pandas=True)
        for name, column in columns.items()
    }
    table = pa.table(arrays)
    if feeds is not None:
        table = table.replace_schema_metadata({FEEDS: json.dumps(feeds)})
    folder.mkdir(parents=True, exist_ok=True)
    # Readers of a folder of Parquet files leave out names that begin with a dot.
    path = folder / PART.format(step=int(columns["step"][0]))
    with whole(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
    return path


def read_parts(
    parts: Sequence[Path], measures: Sequence[str] | None
) -> tuple[Wide, list[dict[str, tuple[str, ...]] | None]]:
    """What some record files hold together, and of each what feeds what."""
    import pyarrow as pa

    # By name, part after part: the first appearance of a site gives its depth.
    tables, feeds = [], []
    last_step = -1
    for path in parts:
        with _opened(path) as part:
            names = part.schema_arrow.names
            wanted = names if measures is None else [*KEYS, *measures]
            table = part.read([one for one in names if one in wanted and one not in HISTOGRAMS])
            last_step = _check_table(table, last_step)
            feeds.append(_feeds(table.schema.metadata))
            tables.append(table.replace_schema_metadata())
    return _wide(pa.concat_tables(tables, promote_options="default")), feeds


def read_histograms(parts: Sequence[Path]) -> Histograms | None:
    """What some record files hold of histograms; None where they hold none."""
    found = []
    for path in parts:
        with _opened(path) as part:
            if set(HISTOGRAMS) <= set(part.schema_arrow.names):
                found.append(_histograms(part.read(["step", "site", *HISTOGRAMS])))
    return joined(found)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A record file as pyarrow has it; what is wrong with it is told as DamagedFile."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_no_file(path, "records of a Recorder", LEAVE_OUT)
    try:
        with pq.ParquetFile(path) as part:
            yield part
    except (pa.ArrowException, LookupError, ValueError, TypeError, OSError) as error:
        raise DamagedFile(path, "records of a Recorder", error, LEAVE_OUT) from None


def _histograms(table: Any) -> Histograms | None:
    steps, row = np.unique(table["step"].to_numpy(), return_inverse=True)
    sites: dict[str, int] = {}
    column = [sites.setdefault(site, len(sites)) for site in table["site"].to_pylist()]
    counts = {}
    for name in HISTOGRAMS:
        dense = np.zeros((len(steps), len(sites), N_BINS), dtype=np.int64)
        for i, j, found in zip(row, column, table[name].to_pylist(), strict=True):
            if found is not None:
                dense[i, j] = found  # which has the right length, else a ValueError
        if np.any(dense < 0):
            raise ValueError(f"column {name} has counts below 0")
        counts[name] = dense
    return occupied(steps, tuple(sites), counts)


def _feeds(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]] | None:
    """What `save_part` wrote beside the columns; None in the records of older versions."""
    text = (metadata or {}).get(FEEDS.encode())
    if text is None:
        return None
    found = typed(json.loads(text), dict[str, list[str]], FEEDS)
    return {site: tuple(behind) for site, behind in found.items()}


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
        if name.endswith("_fraction") and np.any(table[name].to_numpy() > 1):
            raise ValueError(f"column {name} has shares above 1")
    steps = table["step"].to_numpy()
    if not len(steps) or steps[0] <= last_step or np.any(np.diff(steps) < 0):
        raise ValueError(f"its steps do not increase from {last_step + 1} on")
    return int(steps[-1])


def _wide(table: Any) -> Wide:
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
    return Wide(
        steps.astype(np.int64),
        tuple(names[code] for code in order),
        tuple(table["kind"].take(first).to_pylist()),
        table["size"].to_numpy()[first],
        values,
    )


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


def parts_of(run: Path) -> list[Path]:
    """The record files in a network's folder, or in its `records` folder itself, oldest first."""
    return sorted((run / FOLDER).glob(PARTS)) or sorted(run.glob(PARTS))


def drop_from(run: Path, step: int) -> None:
    """Remove the record files that begin at `step` or later, so that training can go on there."""
    drop_unfinished(run / FOLDER)
    for part in parts_of(run):
        if first_step(part) >= step:
            part.unlink()
    if skipped := load_skipped_steps(run):
        save_skipped_steps(run / FOLDER, [one for one in skipped if one < step])


def first_step(part: Path) -> int:
    return int(part.stem.removeprefix("part-"))
