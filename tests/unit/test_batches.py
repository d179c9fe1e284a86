import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from genrl.batches import Completions, Experience, Ranking, Requests, Rewards, Scores, State, Targets, concatenate

P, G, L, T, S = 3, 2, 4, 3, 3
B = P * G
WIDER = torch.zeros(B, 4, dtype=torch.int64)


def make_prompts(length: int = L, first: int = 0) -> Requests:
    tokens = torch.arange(first, first + P * length).view(P, length)
    mask = torch.arange(length) >= torch.arange(P)[:, None]
    return Requests(tokens, mask, torch.arange(2 * P).view(P, 2), Targets(torch.arange(P)[:, None]))


def make_rollout(first: int = 0) -> Completions:
    tokens = torch.arange(first, first + B * T).view(B, T)
    return Completions(
        tokens=tokens,
        chosen=tokens % 2 == 0,
        step_ids=torch.arange(T).expand(B, T),
        item_ids=torch.zeros(B, T, dtype=torch.int64),
        states=State(tokens + 100, tokens * 0),
        codes=tokens + 200,
        items=torch.arange(first, first + B)[:, None],
        logps=-tokens.float(),
        group_size=G,
        num_steps=S,
        entropy=tokens.float(),
        categories=torch.arange(B)[:, None],
        closed=tokens % 3 == 0,
    )


def make_experience() -> Experience:
    rollout = make_rollout()
    advantages = torch.arange(float(B * T)).view(B, T)
    return Experience(rollout, advantages, advantages + 1, torch.arange(float(B)), {"bound": torch.arange(B)})


def make_rewards() -> Rewards:
    rows = torch.arange(float(B))
    steps, items = rows[:, None].expand(B, S), rows[:, None].expand(B, 2)
    values = {"hit": rows + 1, "match": steps, "format": steps + 2, "liked": items}
    weights = {"hit": 0.5, "match": 1.0, "format": 1.0, "liked": 0.0}
    return Rewards(values, weights, frozenset({"format"}), frozenset({"liked"}))


def bad_rewards(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {**make_rewards().values, name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("make", "name", "value", "message"),
    [
        (make_rollout, "tokens", torch.zeros(B + 1, T, dtype=torch.int64), "7 rows do not divide into groups of 2"),
        (make_rollout, "item_ids", torch.ones(B, T), "Completions.item_ids is torch.float32, expected torch.int64"),
        (
            make_rollout,
            "chosen",
            torch.ones(B, T + 1, dtype=torch.bool),
            "Completions.chosen has shape [6, 4], expected [6, 3]",
        ),
        (
            make_rollout,
            "codes",
            torch.zeros(B, S + 1, dtype=torch.int64),
            "Completions.codes has shape [6, 4], expected [6, 3]",
        ),
        (make_rollout, "items", torch.zeros(B, dtype=torch.int64), "Completions.items has shape [6], expected [6, *]"),
        (make_rollout, "logps", torch.zeros(B, T, dtype=torch.int64), "Completions.logps is torch.int64"),
        (make_rollout, "ref_logps", torch.zeros(B, 1), "Completions.ref_logps has shape [6, 1], expected [6, 3]"),
        (make_rollout, "categories", torch.zeros(B, 2, dtype=torch.int64), "Completions.categories has shape [6, 2]"),
        (make_rollout, "closed", torch.ones(B, S), "Completions.closed is torch.float32, expected torch.bool"),
        (
            make_rollout,
            "closed",
            torch.ones(B, T + 1, dtype=torch.bool),
            "Completions.closed has shape [6, 4], expected [6, 3]",
        ),
        (make_prompts, "history", torch.zeros(P - 1, 2, dtype=torch.int64), "Requests.history has shape [2, 2]"),
        (make_prompts, "targets", Targets(torch.zeros(1, 1, dtype=torch.int64)), "Requests.targets has shape"),
        (make_rewards, "values", {"hit": torch.zeros(2)}, "Rewards have values of ['hit'] and weights of ['hit', 'mat"),
        (make_rewards, "values", bad_rewards("match", B - 1, S), "Rewards.values['match'] has shape [5, 3], expected"),
        (make_rewards, "values", bad_rewards("format", B, S + 1), "Rewards.values['format'] has shape [6, 4]"),
        (make_rewards, "values", bad_rewards("liked", B, 2, 1), "Rewards.values['liked'] has shape [6, 2, 1]"),
        (make_experience, "weights", torch.zeros(B, 1), "Experience.weights has shape [6, 1], expected [6, 3]"),
        (make_experience, "mass", torch.zeros(B, 1), "Experience.mass has shape [6, 1], expected [6]"),
    ],
)
def test_batches_of_wrong_shape_are_refused(make, name, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(make(), **{name: value})


def test_targets_and_rankings_are_tables_of_rows():
    with pytest.raises(ValueError, match=r"Targets.items has shape \[3\]"):
        Targets(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"Ranking.scores has shape \[2, 3\], expected \[2, 4\]"):
        Ranking(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 3))


def test_batches_do_not_change():
    with pytest.raises(FrozenInstanceError):
        make_rollout().tokens = torch.zeros(1)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (slice(1, None), [1, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor([True, False, True]), [0, 2]),
        (slice(0, 0), []),
        (torch.tensor([], dtype=torch.int64), []),
    ],
)
def test_prompts_are_taken_with_their_whole_groups(rows, wanted):
    whole = make_experience()
    part = whole.groups(rows)
    completions = [prompt * G + member for prompt in wanted for member in range(G)]
    assert len(part) == len(part.completions) == len(wanted)
    names = ("tokens", "chosen", "item_ids", "codes", "items", "logps", "entropy", "categories", "closed")
    for name in names:
        found, every = getattr(part.completions, name), getattr(whole.completions, name)
        assert found.tolist() == [every[row].tolist() for row in completions]
        assert found.shape[1:] == every.shape[1:]
    assert part.advantages.tolist() == [whole.advantages[row].tolist() for row in completions]
    assert part.mass.tolist() == [float(row) for row in completions]
    assert part.extras["bound"].tolist() == completions
    assert part.completions.ref_logps is None
    assert (part.completions.group_size, part.completions.num_steps) == (G, S)


def test_requests_keep_their_targets_which_are_repeated_for_each_completion():
    part = make_prompts().rows(torch.tensor([2, 1]))
    assert part.wanted.items.tolist() == [[2], [1]]
    assert part.history.tolist() == [[4, 5], [2, 3]]
    assert part.mask.tolist() == make_prompts().mask[[2, 1]].tolist()
    assert len(make_prompts().rows(slice(0, 0))) == 0
    assert make_prompts().wanted.repeat(2).items.flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_rows_of_rewards_are_single_completions():
    part = make_rewards().rows(torch.tensor([5, 0, 5]))
    assert part.outcome.tolist() == [39.0, 6.5, 39.0]
    assert part.steps.tolist() == [[5.0] * S, [0.0] * S, [5.0] * S]
    assert part.step_shaping.tolist() == [[7.0] * S, [2.0] * S, [7.0] * S]
    assert part.components["hit"].tolist() == [6.0, 1.0, 6.0]
    assert part.components["liked"].tolist() == [10.0, 0.0, 10.0]
    assert part.weights == make_rewards().weights
    bare = Rewards({"hit": torch.zeros(4)}, {"hit": 1.0}).rows(slice(1, 3))
    assert bare.steps is bare.step_shaping is None


def test_sizes_of_rewards_do_not_cancel():
    rewards = Rewards({"good": torch.tensor([3.0]), "bad": torch.tensor([[1.0, -2.0]])}, {"good": 2.0, "bad": -1.0})
    assert rewards.outcome.tolist() == [7.0]
    assert rewards.absolute.outcome.tolist() == [9.0]
    assert rewards.absolute.steps.tolist() == [[1.0, 2.0]]


def test_an_item_reward_of_single_items_is_one_of_completions():
    one = Rewards({"liked": torch.tensor([[0.3], [0.7]])}, {"liked": 0.1}, per_item=frozenset({"liked"}))
    whole = Rewards({"liked": torch.tensor([0.3, 0.7])}, {"liked": 0.1})
    assert torch.equal(one.outcome, whole.outcome)
    assert one.steps is None


def test_moving_a_batch_moves_everything_inside_it_and_precision_is_that_of_no_whole_numbers():
    moved = make_experience().to("meta")
    assert {moved.advantages.device.type, moved.extras["bound"].device.type} == {"meta"}
    inside = [getattr(moved.completions, field.name) for field in fields(moved.completions)]
    assert {value.device.type for value in inside if isinstance(value, torch.Tensor)} == {"meta"}
    assert (moved.completions.group_size, moved.completions.ref_logps) == (G, None)
    rewards = make_rewards().to("meta")
    assert rewards.components["hit"].device.type == "meta"
    assert rewards.weights == make_rewards().weights
    assert make_prompts().to("meta").wanted.items.device.type == "meta"
    assert Scores(torch.zeros(1, 1)).to("meta").logps.device.type == "meta"
    converted = make_experience().to(torch.bfloat16)
    assert converted.completions.logps.dtype == converted.mass.dtype == torch.bfloat16
    assert converted.completions.tokens.dtype == converted.extras["bound"].dtype == torch.int64
    assert converted.completions.chosen.dtype == torch.bool


def test_rollouts_are_joined_with_completions_padded_on_the_right():
    long = replace(make_rollout(first=50), item_ids=torch.zeros(B, T, dtype=torch.int64))
    short = long.groups(slice(0, 2))
    names = [each.name for each in fields(short) if each.metadata and getattr(short, each.name) is not None]
    cut = {name: getattr(short, name) for name in names}
    cut["states"] = short.states.each(lambda value: value[:, :1])
    short = replace(short, **{name: cut[name] if name == "states" else cut[name][:, :1] for name in names})
    rows = len(short.tokens)
    for joined, own in ((concatenate(short, long), slice(0, rows)), (concatenate(long, short), slice(B, None))):
        assert len(joined) == P + 2
        assert joined.tokens.shape == (B + rows, T)
        assert joined.tokens[own].tolist() == [[*row, 0, 0] for row in short.tokens.tolist()]
        assert joined.chosen[own].tolist() == [[*row, False, False] for row in short.chosen.tolist()]
        for name in ("step_ids", "item_ids"):
            assert getattr(joined, name)[own].tolist() == [[*row, -1, -1] for row in getattr(short, name).tolist()]
        assert joined.states.site[own].tolist() == [[*row, -1, -1] for row in short.states.site.tolist()]
        assert joined.item_mask[own, 1:].any().item() is False
        assert joined.logps[own, 1:].abs().sum().item() == 0
        assert joined.codes[own].tolist() == short.codes.tolist()


def test_prompt_batches_are_joined_and_histories_padded_with_no_item():
    first = make_prompts()
    second = replace(make_prompts(6), history=torch.arange(3 * P).view(P, 3))
    joined = concatenate(first, second)
    assert joined.history[:P].tolist() == [[-1, *row] for row in first.history.tolist()]
    assert joined.tokens.shape == (2 * P, 6)
    assert joined.mask[:P, :2].any().item() is False
    assert joined.wanted.items.flatten().tolist() == [0, 1, 2, 0, 1, 2]


def test_rewards_are_joined_with_their_components():
    joined = concatenate(make_rewards(), make_rewards())
    assert joined.outcome.shape == (2 * B,)
    assert joined.step_shaping.tolist() == 2 * make_rewards().step_shaping.tolist()
    assert joined.components["hit"].tolist() == 2 * make_rewards().components["hit"].tolist()
    assert (joined.weights, joined.shaping) == (make_rewards().weights, {"format"})
