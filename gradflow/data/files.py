"""What lies in a folder: which files are pictures, which are a system's own, how each is called."""

import logging
import os
import re
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NoReturn

from gradflow.data.photos import HEIF_SUFFIXES, picture_suffixes, printable

# What systems and programs leave beside a person's own files, in any case. Hidden names, such as
# .DS_Store, ._a.jpg, .Trash-1000 and .dropbox.cache, begin with a dot; ~$a.xlsx says that a.xlsx is
# open.
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thevolumesettingsfolder", "recovered files", "recovered items"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "autorun.inf"),  # Windows
        *("$recycle.bin", "recycler", "recycled", "system volume information", "wpsystem"),
        *("$winreagent", "$windows.~bt", "$windows.~ws", "$sysreset", "$getcurrent", "$extend"),
        *("config.msi", "msocache", "lost+found", "lost.dir"),  # the last two: Linux, Android
        *("@eadir", "#recycle", "#snapshot", "~snapshot", "@tmp", "@recycle"),  # NAS
        *("@recently-snapshot", "@__thumb", "@synoresource", "@synoeastream", "@transcode"),
        *("_gsdata_", "recyclebin.ffs_tmp", "sync.ffs_db", "sync.ffs_lock"),  # sync programs
        *("picasa.ini", "zbthumbnail.info", "__pycache__"),
    }
)
_RECOVERED = re.compile(r"found\.\d{3}", re.IGNORECASE)  # what chkdsk found, each time a new one

MOST_OTHERS = 250_000  # files that are no pictures, where they are most of all
SAID_EVERY = 3.0  # seconds: who sees nothing for longer takes it for a hang

_log = logging.getLogger("gradflow")


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name is a person's own, neither hidden nor a system's."""
    is_systems = name.lower() in SYSTEM_NAMES or _RECOVERED.fullmatch(name)
    return not (is_systems or name.startswith((".", "~$", "~syncthing~")))


def files_in(folder: Path) -> list[Path]:
    """All visible files of a folder, deeper ones too, sorted. Links are followed, once each.

    Pipes and devices are no files: to read one may never end. Raises ValueError where a part cannot
    be read, and where `MOST_OTHERS` files show that it is no folder of pictures but, say, a disk.
    """
    found: list[Path] = []
    n_pictures, said = 0, time.monotonic()
    for new in _files_by_folder(folder):
        found += new
        n_pictures += sum(map(_has_picture_ending, new))
        if len(found) - n_pictures > max(MOST_OTHERS, n_pictures):
            raise ValueError(
                f"Expected a folder of pictures, but {n_pictures} of the first {len(found)} files "
                f"in {folder} are pictures. Give the folder that holds them."
            )
        if time.monotonic() > said + SAID_EVERY:
            said = time.monotonic()
            _log.warning("Looking through %s: %d files.", printable(str(folder)), len(found))
    return sorted(found)


def _files_by_folder(folder: Path) -> Iterator[list[Path]]:
    def refuse(error: OSError) -> NoReturn:
        raise ValueError(
            f"Expected to read everything in {folder}, but {error.filename} says: "
            f"{error.strerror}. Change who may read it, move it out, or give another folder."
        ) from error

    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        try:
            place = Path(parent).stat()
            paths = [Path(parent, name) for name in files if is_visible(name)]
            new = [path for path in paths if path.is_file() or not path.exists()]
        except OSError as error:
            refuse(error)
        if (place.st_dev, place.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = [name for name in folders if is_visible(name)]
        yield new


def folders_in(folder: Path) -> list[Path]:
    """The visible folders directly in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_visible(path.name))


def is_picture(path: Path) -> bool:
    """Whether the name says so. A link that leads nowhere counts: it cannot be read."""
    return path.suffix.lower() in picture_suffixes() and (path.is_file() or path.is_symlink())


def _has_picture_ending(path: Path) -> bool:
    return path.suffix.lower() in picture_suffixes() | HEIF_SUFFIXES


def count_endings(files: Iterable[Path]) -> dict[str, int]:
    """How many files have each ending, the most frequent first; "" is none."""
    return dict(Counter(path.suffix.lower() for path in files).most_common())


def endings_text(counts: Mapping[str, int]) -> str:
    """
    >>> endings_text({".txt": 2, "": 1})
    '2 .txt, 1 without an ending'
    """
    listed = ", ".join(f"{n} {ending or 'without an ending'}" for ending, n in counts.items())
    needs_heif = any(ending in HEIF_SUFFIXES for ending in counts)
    return listed + (" (HEIC needs the package pillow-heif)" if needs_heif else "")


class Pictures:
    """The files of a folder, found by what a table calls them.

    A name counts without regard to case, Unicode form and the kind of slash; that of a picture
    also without its ending. Two files that answer to a name are an error.
    """

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self.folder = folder
        self._beneath: dict[tuple[str, str], list[Path]] = defaultdict(list)
        self._anywhere: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            parts = _plain(path.relative_to(folder).as_posix()).split("/")
            for start in range(len(parts)):
                home, name = "/".join(parts[:start]), "/".join(parts[start:])
                for one in (name, name.rpartition(".")[0])[: 1 + _has_picture_ending(path)]:
                    self._beneath[home, one].append(path)
                    self._anywhere[one].append(path)

    def find(self, name: str, home: Path | None) -> Path | None:
        """The file that goes by `name` in `home`; with no home, wherever it lies in the folder."""
        if home is not None and (exact := home / name).is_file():
            return exact
        key = _plain(name)
        if home is None:
            return self._one(name, self._anywhere.get(key, []))
        relative = "" if home == self.folder else _plain(home.relative_to(self.folder).as_posix())
        return self._one(name, self._beneath.get((relative, key), []))

    def has(self, name: str) -> bool:
        """Whether any file in the folder answers to the name."""
        return _plain(name) in self._anywhere

    def n_named_in(self, text: str) -> int:
        """How many pictures a text names with their endings."""
        words = {_plain(word) for word in re.findall(r"[^\s\"'<>,;|/\\]+\.\w{2,5}", text)}
        return sum(_has_picture_ending(Path(word)) and word in self._anywhere for word in words)

    def _one(self, name: str, paths: Sequence[Path]) -> Path | None:
        if len(paths) > 1:
            found = " and ".join(printable(str(path)) for path in paths[:2])
            raise ValueError(
                f"Expected one picture of the name {name}, but got {found}. Give the path from "
                "the table's folder, with the ending."
            )
        return paths[0] if paths else None


def _plain(name: str) -> str:
    """What makes two names the same: composed, lower case, forward slashes, no `./`."""
    slashes = PurePath(name.replace("\\", "/")).as_posix()
    return unicodedata.normalize("NFC", slashes).casefold()
