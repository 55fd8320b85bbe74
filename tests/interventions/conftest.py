"""Networks with few channels, so that whole trainings take a fraction of a second."""

import pytest


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradflow.nets.CHANNELS_PER_STAGE", (4, 8, 8, 16))
