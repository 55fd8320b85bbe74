"""List the labelled image files of a folder, by class folders or by a CSV. Decodes nothing."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
)
PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@dataclass(frozen=True)
class Listing:
    """Image files with their labels, positions in `class_names`, which are sorted.

    `missing` are labelled but not there, `unlabelled` are there only.
    """

    folder: Path
    class_names: tuple[str, ...]
    paths: Sequence[Path]
    labels: Sequence[int]
    missing: Sequence[Path] = ()
    unlabelled: Sequence[Path] = ()


def list_folder(folder: Path) -> Listing:
    """List a folder that holds one CSV with the columns filename,label, or class folders."""
    tables = [path for path in sorted(folder.glob("*.[cC][sS][vV]")) if _is_visible(path, folder)]
    labelling = [path for path in tables if {"filename", "label"} <= set(_columns(path))]
    if len(labelling) > 1:
        raise ValueError(
            f"Expected one CSV with the columns filename,label in {folder}, but got "
            f"{', '.join(path.name for path in labelling)}. Pass the path of the CSV to use."
        )
    if labelling:
        return list_csv(labelling[0])
    subfolders = _subfolders(folder)
    are_parts = {path.name.lower() for path in subfolders} <= PART_NAMES
    if not subfolders or (tables and are_parts):
        got = _names([f"{path.name} with {','.join(_columns(path))}" for path in tables])
        raise ValueError(
            f"Expected class folders, or a CSV with the columns filename,label, in {folder}, but "
            f"got {got or 'neither'}. Make one folder of images per class, or such a CSV."
        )
    if are_parts:
        parts = _names(path.name for path in subfolders)
        raise ValueError(
            f"Expected class folders in {folder}, but got the parts {parts}. "
            f"Point at one of them, for example {subfolders[0]}; gradflow makes its own split."
        )
    return _class_folders(folder, subfolders)


def _class_folders(folder: Path, subfolders: Sequence[Path]) -> Listing:
    images = {path.name: _images_in(path) for path in subfolders}
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise ValueError(
            f"Expected images in every class folder of {folder}, but got none in {_names(empty)}. "
            "Put images there, or move the folder out."
        )
    paths = [path for name in images for path in images[name]]
    labels = [label for label, name in enumerate(images) for _ in images[name]]
    return Listing(
        folder,
        class_names=tuple(images),
        paths=paths,
        labels=labels,
        unlabelled=_images_in(folder, nested=False),
    )


def list_csv(table: Path) -> Listing:
    """List the images that a CSV with the columns filename,label names.

    The file names are relative to the CSV's folder, or to a folder in it that bears the CSV's name
    or is the only one.
    """
    folder = table.parent
    labels = _read_labels(table)
    subfolders = _subfolders(folder)
    only_one = subfolders if len(subfolders) == 1 else []
    homes = list(dict.fromkeys([folder, folder / table.stem, *only_one]))
    found = [home for home in homes if any((home / name).is_file() for name in labels)]
    if not found:
        raise FileNotFoundError(
            f"Expected the {len(labels)} images of {table} in {_names(map(str, homes))}, but found "
            "none of them. Give file names relative to the CSV's folder."
        )
    home = found[0]
    class_names = tuple(sorted(set(labels.values())))
    number = {name: i for i, name in enumerate(class_names)}
    there = {name: label for name, label in labels.items() if (home / name).is_file()}
    named = {home / name for name in labels}
    return Listing(
        folder,
        class_names=class_names,
        paths=[home / name for name in there],
        labels=[number[label] for label in there.values()],
        missing=[home / name for name in labels if name not in there],
        unlabelled=[path for path in _images_in(home) if path not in named],
    )


def _read_labels(table: Path) -> dict[str, str]:
    """File name to label, in the CSV's order. A row that repeats one word for word counts once."""
    if not {"filename", "label"} <= set(_columns(table)):
        raise ValueError(
            f"Expected the columns filename,label in {table}, but got "
            f"{','.join(_columns(table)) or 'an empty file'}. Rename the columns."
        )
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        columns = [_column(name) for name in next(rows)]
        for values in rows:
            row = dict(zip(columns, (value.strip() for value in values), strict=False))
            if not any(row.values()):
                continue
            filename, label = row.get("filename", ""), row.get("label", "")
            if not filename or not label:
                raise ValueError(
                    f"Expected a file name and a label in line {rows.line_num} of {table}, but "
                    f"got {filename!r} and {label!r}. Fill in the row or remove it."
                )
            filename = PurePath(filename).as_posix()
            if labels.setdefault(filename, label) != label:
                raise ValueError(
                    f"Expected one label per file in {table}, but got {filename} as "
                    f"{labels[filename]!r} in line {lines[filename]} and as {label!r} in line "
                    f"{rows.line_num}. Keep the true one."
                )
            lines.setdefault(filename, rows.line_num)
    if not labels:
        raise ValueError(f"Expected rows below the header of {table}, but got none. Add them.")
    return labels


def _columns(table: Path) -> list[str]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            return [_column(name) for name in next(csv.reader(file), [])]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected UTF-8 text in {table}, but got {error}. Save the CSV as UTF-8."
        ) from error


def _column(name: str) -> str:
    return name.strip().lower()


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and _is_visible(p, folder))


def _images_in(folder: Path, *, nested: bool = True) -> list[Path]:
    paths = folder.rglob("*") if nested else folder.iterdir()
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and _is_visible(path, folder) and path.is_file()
    )


def _is_visible(path: Path, folder: Path) -> bool:
    """Whether no step from the folder to the path is hidden: systems leave `._a.jpg` and such."""
    parts = path.relative_to(folder).parts
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
