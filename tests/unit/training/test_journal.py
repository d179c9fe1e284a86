from __future__ import annotations

import torch

from genrl.training.journal import Journal


def test_a_step_closes_with_means_and_largest_values_and_the_next_begins_anew() -> None:
    journal = Journal()
    journal.add({"loss": 1.0, "gap_max": torch.tensor(3.0)}, {"loss": torch.tensor(2.0)})
    journal.add({"gap_max": 1.0})
    with journal.timed("seconds"):
        pass
    closed = journal.close()
    assert closed.pop("seconds") >= 0
    assert closed == {"loss": 1.5, "gap_max": 3.0}
    assert journal.close() == {}
