import torch

from genrl.training.journal import Journal


def test_values_are_averaged_but_for_the_largest_and_then_forgotten():
    journal = Journal()
    journal.add({"a": 1.0, "b_max": torch.tensor(3.0)}, {"c": 5.0})
    journal.add({"a": torch.tensor(2.0), "b_max": 1.0})
    with journal.timed("time"):
        pass
    found = journal.close()
    assert found.pop("time") >= 0
    assert found == {"a": 1.5, "b_max": 3.0, "c": 5.0}
    assert journal.close() == {}
