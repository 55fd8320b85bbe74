"""What somebody else may hand over: a changed configuration and pictures; a secret to reach."""

from pathlib import Path
from typing import Any

import yaml
from PIL import Image

SECRET = "a file of the reader's"


def configure(run: Path, **fields: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | fields, sort_keys=False))


def picture(path: Path, colour: str = "red") -> Path:
    Image.new("RGB", (8, 8), colour).save(path)
    return path
