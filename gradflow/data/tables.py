"""Tables that label pictures: the separator, and which column holds the picture, which the class.

A table is read where this is beyond doubt; where it is in doubt, the error names the columns.
"""

import codecs
import csv
import gzip
import re
import zipfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gradflow.data.files import Pictures

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".psv", ".txt", ".dat"})
# Tables of another form. One that names pictures is refused rather than passed over.
OTHER_TABLE_SUFFIXES = frozenset(
    {
        *(".xlsx", ".xlsm", ".xls", ".ods", ".gz"),
        *(".json", ".jsonl", ".ndjson", ".yaml", ".yml", ".parquet", ".feather", ".arrow"),
    }
)

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
UNREAD_SEPARATORS = {" ": "spaces", ":": "colons"}  # which stand in names as well
# Columns by their usual names, without case, spaces, marks and the plural.
FILE_COLUMNS = frozenset(
    {
        *("id", "path", "fname", "photo", "picture"),
        *("file", "filename", "filepath"),
        *("image", "imageid", "imagename", "imagepath", "imagefile", "imagefilename"),
        *("img", "imgid", "imgname", "imgpath", "imgfile"),
    }
)
LABEL_COLUMNS = frozenset(
    {
        *("label", "labelname", "class", "classname", "classlabel"),
        *("category", "categoryname", "target"),
    }
)

_N_TRIED = 200  # rows by which a table is judged before it is read
_N_BYTES = 2**22  # of a spreadsheet that are searched for names of pictures


@dataclass(frozen=True)
class Columns:
    """How a table is to be read: by position, which column names the picture, which the class."""

    separator: str
    names: tuple[str, ...]
    file: int
    label: int

    @property
    def is_plain(self) -> bool:
        """Whether they are called filename and label, as in a table made for gradflow."""
        return {"filename", "label"} <= {self.names[i].lower() for i in (self.file, self.label)}

    def __str__(self) -> str:
        """What was taken for what, as a person is told."""
        return (
            f"columns {self.names[self.file]} and {self.names[self.label]}, "
            f"separated by {SEPARATORS[self.separator]}"
        )


def find_columns(table: Path, pictures: Pictures) -> Columns | None:
    """How the table is to be read, None if it does not say beyond doubt.

    The columns `filename` and `label` always count. Otherwise the picture's is the only column
    whose rows name files that are there, or the only one of them that is called as such columns
    are (`FILE_COLUMNS`); the class's is the only one called so (`LABEL_COLUMNS`), or the only
    other one.
    """
    for separator in SEPARATORS:
        header, *rows = _head(table, separator) or [[]]
        if len(header) < 2 or _is_row(header, pictures):
            continue
        file = _file_column(header, rows, pictures)
        label = None if file is None else _label_column(header, file)
        if file is not None and label is not None:
            return Columns(separator, tuple(header), file, label)
    return None


def why_not_read(table: Path, pictures: Pictures) -> str | None:
    """What a table that sorts pictures into groups lacks to be read; None for any other file."""
    if table.suffix.lower() in OTHER_TABLE_SUFFIXES:
        if pictures.n_named_in(_text_of(table)) < 2:
            return None
        return "it is no table of text. Save it as CSV with the columns filename,label"
    for separator in (*SEPARATORS, *UNREAD_SEPARATORS):
        header, *rows = _head(table, separator) or [[]]
        columns = [_column(rows, i) for i in range(len(header))]
        named = any(_names_pictures(*one, pictures) for one in zip(header, columns, strict=True))
        if named and any(map(_is_grouping, columns)):
            return _lack(header, separator, pictures)
    return None


def describe(table: Path) -> str:
    """The columns, by the separator that makes most of them."""
    heads = {one: (_head(table, one) or [[]])[0] for one in SEPARATORS}
    separator = max(heads, key=lambda one: len(heads[one]))
    names = ",".join(heads[separator])
    return f"{names} (separated by {SEPARATORS[separator]})" if names else "an empty file"


def rows_of(table: Path, columns: Columns) -> Iterator[tuple[int, str, str]]:
    """Line, name of the picture and class, row by row.

    Raises ValueError for a row without one of the two.
    """
    for line, values in islice(_rows(table, columns.separator), 1, None):
        name, label = _cell(values, columns.file), _cell(values, columns.label)
        if not name or not label:
            raise ValueError(
                f"Expected a file name and a label in line {line} of {table}, but got {name!r} "
                f"and {label!r}. Fill in the row or remove it."
            )
        yield line, name, label


def _file_column(names: Sequence[str], rows: Sequence[list[str]], found: Pictures) -> int | None:
    if (exact := _only(names, "filename")) is not None:
        return exact
    naming = [
        i
        for i, name in enumerate(names)
        if not _is_called(name, LABEL_COLUMNS) and _names_pictures(name, _column(rows, i), found)
    ]
    called = [i for i in naming if _is_called(names[i], FILE_COLUMNS)]
    for choice in (naming, called):
        if len(choice) == 1:
            return choice[0]
    return None


def _label_column(names: Sequence[str], file: int) -> int | None:
    if (exact := _only(names, "label")) is not None:
        return exact
    called = [i for i in range(len(names)) if i != file and _is_called(names[i], LABEL_COLUMNS)]
    if len(called) == 1:
        return called[0]
    return 1 - file if len(names) == 2 else None


def _only(names: Sequence[str], word: str) -> int | None:
    """The one column of exactly this name."""
    found = [i for i, name in enumerate(names) if name.lower() == word]
    return found[0] if len(found) == 1 else None


def _is_called(name: str, words: frozenset[str]) -> bool:
    word = re.sub(r"[^a-z0-9]", "", name.lower())
    return bool({word, word.removesuffix("s"), word.removesuffix("es")} & words)


def _names_pictures(name: str, values: Sequence[str], pictures: Pictures) -> bool:
    """Whether most of a column's values are names of files, and few of them come twice.

    Numbers are names only where the column is called as such: a price of 3 is not `3.jpg`.
    """
    if not values or (all(map(str.isdecimal, values)) and not _is_called(name, FILE_COLUMNS)):
        return False
    return 2 * sum(map(pictures.has, values)) >= len(values) and not _is_grouping(values)


def _is_grouping(values: Sequence[str]) -> bool:
    """Whether a column sorts its rows into groups, as a class does."""
    return 2 <= len(set(values)) <= len(values) / 2


def _is_row(header: Sequence[str], pictures: Pictures) -> bool:
    """Whether the first line already names a picture."""
    known = FILE_COLUMNS | LABEL_COLUMNS
    return any(pictures.has(value) and not _is_called(value, known) for value in header)


def _lack(header: Sequence[str], separator: str, pictures: Pictures) -> str:
    by = f"separated by {(SEPARATORS | UNREAD_SEPARATORS)[separator]}"
    if _is_row(header, pictures):
        return f"its first line is no header ({by}). Put filename,label above its rows"
    return (
        f"it has the columns {', '.join(header)} ({by}), and which of them hold the picture and "
        "the class is in doubt. Rename those two to filename and label"
    )


def _column(rows: Iterable[Sequence[str]], i: int) -> list[str]:
    return [value for row in rows if (value := _cell(row, i))]


def _cell(row: Sequence[str], i: int) -> str:
    return row[i].strip() if i < len(row) else ""


def _head(table: Path, separator: str) -> list[list[str]]:
    """The header and the first rows, whatever their encoding; none of an empty file."""
    with closing(_rows(table, separator, errors="replace")) as rows:
        return [values for _, values in islice(rows, 1 + _N_TRIED)]


def _rows(
    table: Path, separator: str, errors: str = "strict"
) -> Generator[tuple[int, list[str]], None, None]:
    """Line and stripped values of each row, header first, blank rows left out."""
    try:
        with table.open(encoding=_encoding(table), errors=errors, newline="") as file:
            reader = csv.reader(file, delimiter=separator)
            for values in reader:
                is_hint = reader.line_num == 1 and "".join(values).startswith("sep=")  # of Excel
                if any(map(str.strip, values)) and not is_hint:
                    yield reader.line_num, [value.strip() for value in values]
    except UnicodeError as error:
        raise ValueError(
            f"Expected UTF-8 text in {table}, but got {error}. Save the table as UTF-8."
        ) from error
    except csv.Error as error:
        raise ValueError(f"Expected a table in {table}, but got: {error}. Correct it.") from error


def _encoding(table: Path) -> str:
    with table.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _text_of(table: Path) -> str:
    """The beginning of the text: of a zip archive of XML, of gzip, or of a file with strings."""
    try:
        if zipfile.is_zipfile(table):
            with zipfile.ZipFile(table) as archive:
                parts = [archive.open(name).read(_N_BYTES) for name in archive.namelist()]
        else:
            with (gzip.open if table.suffix.lower() == ".gz" else open)(table, "rb") as file:
                parts = [file.read(_N_BYTES)]
    except (zipfile.BadZipFile, EOFError, OSError):
        return ""
    return b"\n".join(parts).decode("utf-8", errors="replace")
