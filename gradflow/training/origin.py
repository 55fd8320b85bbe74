"""Whether a run was trained here by this user, so that the images it names may be shown.

A run of somebody else can name any folder of the reader's. The mark of a run of one's own is an
HMAC, with a key that stays in the user's own folder, of the run's folder on the disk and of the
name of its data: neither a copy nor a run of others has it.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from gradflow.files import whole


def mark(run: Path, data: str) -> str | None:
    """The mark of the run in this folder; None where there is no key, as without a home."""
    key = _key()
    if key is None:
        return None
    message = f"{run.stat().st_ino}\n{data}".encode(errors="surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """Made when it is first asked for. None where others could have written it."""
    try:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        folder = base / "gradflow"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
        if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
            return None
        path = folder / "key"
        if not path.exists():
            with whole(path) as new:
                new.chmod(0o600)
                new.write_bytes(secrets.token_bytes(32))
        return path.read_bytes()
    except (OSError, RuntimeError, AttributeError):  # no home to write in; a system without users
        return None
