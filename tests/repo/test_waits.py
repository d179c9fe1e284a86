"""How often the host waits for an accelerator, counted on a stand-in: neither a GPU nor a clock is needed for it."""

import pytest
import torch
from benchmarks.inputs import make_inputs, make_slates, make_thinking
from benchmarks.standin import DEVICE, StandInStrategy, stand_in, there, told
from benchmarks.waiting import SMALL, counts, updates
from lightning.pytorch.callbacks import LambdaCallback

from genrl.ops import LOOK, fetched, sent
from tests.helpers import assert_same
from tests.runs import begun, flat_weights, sft_module, train


@pytest.fixture
def device():
    with stand_in() as counted:
        yield counted


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda x: x.sum().item(), "value _local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "value _local_scalar_dense"),
        (lambda x: x.tolist(), "copy _to_copy"),
        (lambda x: x.cpu(), "copy _to_copy"),
        (lambda x: x.nonzero(), "shape nonzero"),
        (lambda x: x[x > 0], "shape index"),
        (lambda x: x.unique(), "shape _unique2"),
        (lambda x: torch.equal(x, x), "shape equal"),
        (lambda x: x.repeat_interleave(torch.full((3,), 2, device=DEVICE)), "shape repeat_interleave"),
        (lambda x: torch.tensor([1.0, 2.0], device=DEVICE), "copy _to_copy"),
        (lambda x: torch.zeros(3).to(DEVICE), "copy _to_copy"),
        (lambda x: torch.zeros(3).to(DEVICE, non_blocking=True), "copy _to_copy"),
        (lambda x: x[torch.tensor([0])], "copy index"),
    ],
)
def test_whoever_asks_for_a_value_a_shape_or_a_copy_is_counted(device, ask, kind):
    there_is = torch.ones(3).to(DEVICE)
    device.take()
    ask(there_is)
    assert [wait.kind for wait in device.take()] == [kind]


def test_what_needs_no_answer_is_not_counted_and_computes_what_the_cpu_computes(device):
    values = sent(torch.arange(6.0).view(2, 3), DEVICE)
    found = torch.where(values > 2, values, 0.0).softmax(-1).masked_fill(values > 4, 0.0).cumsum(1)
    found[:, 1] += 1.0
    assert device.take() == []
    plain = torch.arange(6.0).view(2, 3)
    wanted = torch.where(plain > 2, plain, 0.0).softmax(-1).masked_fill(plain > 4, 0.0).cumsum(1)
    wanted[:, 1] += 1.0
    assert torch.equal(there(found), wanted)


def test_tensors_of_both_places_are_refused(device):
    with pytest.raises(RuntimeError, match=r"shape \[\[3\]\] are on the host, others on the device"):
        torch.ones(3).to(DEVICE) + torch.ones(3)


def test_scalars_come_by_one_copy(device):
    values = [torch.full((), number, device=DEVICE) for number in (1, 2.5)] + [torch.tensor(3.0)]
    assert [value.item() for value in fetched(values)] == [1.0, 2.5, 3.0]
    assert [wait.kind for wait in device.take()] == ["copy _to_copy"]


@pytest.mark.parametrize(("way", "scored"), [("tree", 1), ("expand", 2)])
def test_neither_a_written_token_nor_a_searched_level_of_sids_waits(way, scored):
    found = counts(make_inputs(SMALL), way)
    assert (told(found.write), told(found.search)) == ("none", "none")
    assert len(found.score) <= scored, told(found.score)


def test_slates_look_once_whether_there_are_items_enough():
    found = counts(make_slates(SMALL), "expand")
    assert [wait.place.split(":")[0] for wait in found.write] == ["genrl/layouts/items.py"]
    assert len(found.search) == 1


def test_thinking_looks_once_per_token_and_at_every_few_for_what_has_ended():
    found = counts(make_thinking(SMALL), "expand")
    assert found.tokens > 4 * LOOK
    ended = 3 * (found.tokens // LOOK + 1)
    assert len(found.write) <= found.tokens + LOOK + ended, told(found.write)
    assert len(found.score) <= 4, told(found.score)


def test_a_step_of_rl_waits_for_its_rollout_its_passes_and_once_for_its_norm_and_all_it_logs():
    places = [wait.place.split(":")[0] for wait in updates()]
    assert sorted(places) == [
        "genrl/ops.py",  # are rewards finite
        "genrl/ops.py",  # is credit finite
        "genrl/ops.py",  # norm, losses, statistics
        "genrl/policy/share.py",  # tokens of the widest row of a scored batch
        "genrl/training/rl.py",  # which groups are left, how long their prompts are
        "genrl/training/stage.py",  # are log-probabilities finite
    ]


def test_a_supervised_step_waits_once_and_learns_what_it_learns_on_a_cpu(tmp_path):
    session, _ = begun(tmp_path / "cpu")
    train(sft_module(session, tmp_path), 4)
    wanted = flat_weights(session.policy)
    session, _ = begun(tmp_path / "away")
    marks = []
    with stand_in() as device:
        marked = LambdaCallback(on_train_batch_end=lambda *_: marks.append(len(device.take())))
        train(sft_module(session, tmp_path), 4, marked, strategy=StandInStrategy())
        found = there(flat_weights(session.policy))
    assert marks[1:] == [1, 1, 1]
    assert_same(found, wanted)
