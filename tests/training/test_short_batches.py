"""Which optimizer steps saw a short batch, against the batches themselves."""

import numpy as np
import pytest
import torch

from gradflow.data import Batches, ImageStore
from gradflow.record.trace import Table
from gradflow.training.config import TrainConfig
from gradflow.training.short_batches import short_last_batch, without_short


@pytest.mark.parametrize(("n", "size"), [(199, 64), (64, 64), (65, 64), (160, 64), (159, 64)])
def test_the_last_batch_is_short_where_the_batches_say_so(n, size):
    store = ImageStore(
        torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64), ("a", "b")
    )
    sizes = Batches(store, np.arange(n), size, shuffle=True).batch_sizes()
    expected = (len(sizes), sizes[-1]) if sizes[-1] < size / 2 else None
    assert short_last_batch(TrainConfig(batch_size=size), n) == expected


def test_their_steps_leave_a_table_and_no_others():
    table = Table(np.arange(0, 12, 2), ("a",), np.arange(6.0)[:, None])
    assert without_short(table, (3, 7)).steps.tolist() == [0, 4, 6, 10]  # 2 and 8 are third
    assert without_short(table, None) is table
