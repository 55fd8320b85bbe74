"""What several tests of studies share."""

import pytest

from gradflow.studies.cell import run_cell
from gradflow.studies.engine import Engine


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in this process, where a test can reach in; the order is that of the study."""
    monkeypatch.setattr(Engine, "run", lambda self, cells, jobs: [run_cell(cell) for cell in cells])
