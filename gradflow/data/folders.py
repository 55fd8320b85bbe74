"""List the labelled image files of a folder, by class folders or by a table. Decodes nothing."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from gradflow.data.files import (
    Pictures,
    count_endings,
    endings_text,
    files_in,
    folders_in,
    is_picture,
)
from gradflow.data.photos import printable
from gradflow.data.tables import (
    OTHER_TABLE_SUFFIXES,
    TABLE_SUFFIXES,
    Columns,
    describe,
    find_columns,
    rows_of,
    why_not_read,
)
from gradflow.typed import shown

PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@dataclass(frozen=True)
class Listing:
    """Image files with their labels, positions in `class_names`, which are sorted.

    `missing` are labelled but not there, `unlabelled` are there only. `unread` counts the files
    beside them that are no pictures, by ending. `labels_from` says which table was read, and how.
    """

    folder: Path
    class_names: tuple[str, ...]
    paths: Sequence[Path]
    labels: Sequence[int]
    missing: Sequence[Path] = ()
    unlabelled: Sequence[Path] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    labels_from: str = ""


def list_folder(folder: Path, *, allow_outside: bool = False) -> Listing:
    """List a folder that holds one table of pictures and classes, or class folders.

    A table that sorts the pictures into groups but cannot be read beyond doubt is an error.
    """
    files = files_in(folder)
    pictures = Pictures(folder, files)
    tables = [path for path in files if path.parent == folder and _is_table(path)]
    read = {table: columns for table in tables if (columns := _columns(table, pictures))}
    plain = [table for table, columns in read.items() if columns.is_plain]
    if len(plain) == 1:
        read = {plain[0]: read[plain[0]]}
    if len(read) > 1:
        raise ValueError(
            f"Expected one table with the columns filename,label in {folder}, but got "
            f"{', '.join(path.name for path in read)}. Pass the path of the one to use."
        )
    for table, columns in read.items():
        return _list_table(table, columns, files, pictures, allow_outside)
    for path in files:
        is_other = path.suffix.lower() in OTHER_TABLE_SUFFIXES
        if _is_table(path) or (is_other and not pictures.has(path.stem)):
            _refuse_if_it_labels(path, pictures)  # what bears a picture's name is about it alone
    subfolders = folders_in(folder)
    are_parts = {path.name.lower() for path in subfolders} <= PART_NAMES
    texts = [path for path in tables if path.suffix.lower() == ".csv"]
    if not subfolders or (texts and are_parts):
        got = ", ".join(f"{path.name} with {describe(path)}" for path in texts)
        raise ValueError(
            f"Expected class folders, or a CSV with the columns filename,label, in {folder}, but "
            f"got {got or 'neither'}. Make one folder of images per class, or such a CSV."
        )
    if are_parts:
        parts = ", ".join(path.name for path in subfolders)
        raise ValueError(
            f"Expected class folders in {folder}, but got the parts {parts}. "
            f"Point at one of them, for example {subfolders[0]}; gradflow makes its own split."
        )
    return _class_folders(folder, subfolders, files)


def list_table(table: Path, *, allow_outside: bool = False) -> Listing:
    """List the images that a table names, by default in the columns filename,label.

    The file names are relative to the table's folder or to the folder in it that bears the
    table's name; where none is there, each may lie anywhere beneath, under a name of its own. With
    `allow_outside` they may lead out of that folder: a table of somebody else could name any
    picture of the reader's.
    """
    files = files_in(table.parent)
    pictures = Pictures(table.parent, files)
    columns = _columns(table, pictures)
    if columns is None:
        _refuse_if_it_labels(table, pictures)
        raise ValueError(
            f"Expected the columns filename,label in {table}, but got {describe(table)}. Rename "
            "the columns, and check that the pictures are beside the table."
        )
    return _list_table(table, columns, files, pictures, allow_outside)


def _class_folders(folder: Path, subfolders: Sequence[Path], files: Sequence[Path]) -> Listing:
    """Folders whose names differ in their Unicode form only are one class."""
    inside: dict[str, list[Path]] = {printable(path.name): [] for path in subfolders}
    for path in files:
        if path.parent != folder:
            inside[printable(path.relative_to(folder).parts[0])].append(path)
    images = {name: list(filter(is_picture, paths)) for name, paths in sorted(inside.items())}
    empty = [
        name + (f" ({endings_text(count_endings(inside[name]))})" if inside[name] else "")
        for name, paths in images.items()
        if not paths
    ]
    if empty:
        raise ValueError(
            f"Expected images in every class folder of {folder}, but got none in "
            f"{', '.join(empty)}. Put images there, or move the folder away."
        )
    if len(images) == 1 and len(inner := folders_in(subfolders[0])) > 1:
        raise ValueError(
            f"Expected at least two class folders in {folder}, but got {subfolders[0].name} "
            f"alone, which contains the folders {', '.join(path.name for path in inner[:5])}. If "
            f"those are the classes, point at {subfolders[0]}."
        )
    return Listing(
        folder,
        class_names=tuple(images),
        paths=[path for paths in images.values() for path in paths],
        labels=[label for label, paths in enumerate(images.values()) for _ in paths],
        unlabelled=[path for path in files if path.parent == folder and is_picture(path)],
        unread=count_endings(path for path in files if not is_picture(path)),
    )


def _list_table(
    table: Path,
    columns: Columns,
    files: Sequence[Path],
    pictures: Pictures,
    allow_outside: bool,
) -> Listing:
    rows = list(rows_of(table, columns))
    if not rows:
        raise ValueError(f"Expected rows below the header of {table}, but got none. Add them.")
    for line, name, _ in () if allow_outside else rows:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ValueError(
                f"Expected names of files inside the folder of {table}, but got {shown(name)} in "
                f"line {line}. If you trust the table, add --allow-outside."
            )
    home = _home(table, [name for _, name, _ in rows], pictures)
    labelled, missing = _labels(table, rows, home, pictures)
    if not allow_outside:
        _refuse_links_outside(table, labelled)
    class_names = tuple(sorted({label for _, _, label in rows}))
    number = {name: i for i, name in enumerate(class_names)}
    place = home or Path(os.path.commonpath([path.parent for path in labelled]))
    beside = [path for path in files if place in path.parents and path not in labelled]
    return Listing(
        table.parent,
        class_names=class_names,
        paths=list(labelled),
        labels=[number[label] for label in labelled.values()],
        missing=[place / name for name in missing],
        unlabelled=[path for path in beside if is_picture(path)],
        unread=count_endings(path for path in beside if not is_picture(path) and path != table),
        labels_from=f"{printable(table.name)}, {columns}",
    )


def _home(table: Path, names: Sequence[str], pictures: Pictures) -> Path | None:
    """The folder that the names are relative to; None where each is to be looked for."""
    folder = table.parent
    for home in dict.fromkeys([folder, folder / table.stem]):
        if any(pictures.find(name, home) for name in names):
            return home
    if any(pictures.find(name, None) for name in names):
        return None
    raise FileNotFoundError(
        f"Expected the {len(set(names))} images of {table} in {folder} or a folder in it, but "
        f"found none of them, {names[0]} for one. Give file names relative to the table's folder."
    )


def _refuse_links_outside(table: Path, files: Iterable[Path]) -> None:
    """A link in the folder of a table may lead out of it as a name may: ValueError."""
    folder, files = table.parent.resolve(), list(files)
    for path in {file.parent for file in files}.union(filter(Path.is_symlink, files)):
        if not path.resolve().is_relative_to(folder):
            raise ValueError(
                f"Expected files inside the folder of {table}, but {shown(str(path))} is a link to "
                f"{shown(str(path.resolve()))}. If you trust the table, add --allow-outside."
            )


def _labels(
    table: Path, rows: Sequence[tuple[int, str, str]], home: Path | None, pictures: Pictures
) -> tuple[dict[Path, str], list[str]]:
    """The label of each file that is there, in the table's order, and the names of the others.

    A file may come twice with one label.
    """
    said: dict[Path | str, tuple[str, int]] = {}
    for line, name, label in rows:
        file = pictures.find(name, home) or name
        before, before_line = said.setdefault(file, (label, line))
        if before != label:
            raise ValueError(
                f"Expected one label per file in {table}, but got {name} as {before!r} in line "
                f"{before_line} and as {label!r} in line {line}. Keep the right one."
            )
    labelled = {file: label for file, (label, _) in said.items() if isinstance(file, Path)}
    return labelled, [file for file in said if isinstance(file, str)]


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLE_SUFFIXES


def _columns(table: Path, pictures: Pictures) -> Columns | None:
    return find_columns(table, pictures) if _is_table(table) else None


def _refuse_if_it_labels(table: Path, pictures: Pictures) -> None:
    lack = why_not_read(table, pictures)
    if lack is not None:
        raise ValueError(
            f"Expected the classes in {table}, which names the pictures, but {lack}. "
            "If it does not hold the classes, move it out of the folder."
        )
