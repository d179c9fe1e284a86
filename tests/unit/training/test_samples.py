import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genrl.batches import Rewards
from genrl.runs.session import Session
from genrl.training.callbacks import RolloutSamples
from genrl.training.samples import markdown, rollout_samples
from tests.models import as_completions
from tests.runs import attach, rl_module, small_config


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session.build(small_config(tmp_path_factory.mktemp("samples")))


@pytest.fixture
def sampled(session: Session, tmp_path: Path):
    module = attach(rl_module(session, tmp_path))
    module.experience(0)
    experience, rewards, prompts = module.sampled
    tokens = torch.arange(experience.completions.tokens.numel()).view_as(experience.completions.tokens)  # all different
    experience = replace(experience, completions=replace(experience.completions, tokens=tokens))
    outcome = torch.zeros_like(rewards.outcome)
    outcome[4:8] = torch.tensor([0.0, 1.0, 0.5, 0.5])  # prompt 1 has the widest rewards, then prompt 2
    outcome[8:12] = torch.tensor([0.25, 0.25, 0.25, 0.0])
    return experience, Rewards({"exact_match": outcome}, {"exact_match": 1.0}), prompts, session


def samples_of(sampled, count: int, completions: int):
    experience, rewards, prompts, session = sampled
    codes, catalog = session.layout.codes, session.dataset.catalog
    return rollout_samples(experience, rewards, prompts, codes, catalog, count, completions)


def test_the_prompts_with_the_widest_rewards_are_shown_best_completion_first(sampled):
    experience, _, prompts, session = sampled
    first, second = samples_of(sampled, count=2, completions=4)
    titles = session.dataset.catalog.titles
    assert first.target == titles[int(prompts.targets.items[1, 0])]
    assert second.target == titles[int(prompts.targets.items[2, 0])]
    assert [row.reward for row in first.completions] == [1.0, 0.5, 0.5, 0.0]
    assert first.completions[1].log_prob >= first.completions[2].log_prob
    best = experience.completions.codes[5].tolist()
    assert first.completions[0].codes == tuple(best)
    codes = session.layout.codes[prompts.targets.items[1, 0]]
    assert first.target_codes == tuple(codes.tolist())
    assert [row.drawn for row in first.completions] == [1, 1, 1, 1]


def test_of_many_completions_the_best_and_the_worst_are_shown(sampled):
    every = samples_of(sampled, count=1, completions=4)[0].completions
    assert samples_of(sampled, count=1, completions=3)[0].completions == (*every[:2], every[3])
    assert samples_of(sampled, count=1, completions=2)[0].completions == (every[0], every[3])
    assert samples_of(sampled, count=1, completions=1)[0].completions == every[:1]


def test_equal_completions_stand_there_once_with_their_number(sampled):
    experience, rewards, prompts, session = sampled
    rollout = experience.completions
    tokens, logps, choices = rollout.tokens.clone(), rollout.logps.clone(), rollout.codes.clone()
    for values in (tokens, logps, choices):
        values[7] = values[6]
    same = replace(rollout, tokens=tokens, logps=logps, codes=choices)
    samples = samples_of((replace(experience, completions=same), rewards, prompts, session), count=1, completions=4)
    assert [(row.reward, row.drawn) for row in samples[0].completions] == [(1.0, 1), (0.5, 2), (0.0, 1)]
    assert "| 2 |" in markdown(samples)


def test_a_completion_shows_the_advantage_of_each_of_its_steps(sampled):
    experience, *_ = sampled
    row = samples_of(sampled, count=1, completions=1)[0].completions[0]
    steps = experience.completions.step_ids[5]
    wanted = [float(experience.advantages[5][steps == step].mean()) for step in range(experience.completions.num_steps)]
    assert row.advantages == pytest.approx(wanted, abs=1e-4)


def test_a_completion_that_is_no_item_is_shown_as_such(sampled):
    experience, rewards, prompts, session = sampled
    lost = replace(experience.completions, items=torch.full_like(experience.completions.items, -1))
    samples = samples_of((replace(experience, completions=lost), rewards, prompts, session), count=1, completions=1)
    assert samples[0].completions[0].item == "(no item)"


def test_records_are_plain_json(sampled):
    record = asdict(samples_of(sampled, count=1, completions=1)[0])
    assert json.loads(json.dumps(record))["completions"][0]["codes"] == list(record["completions"][0]["codes"])


def test_a_table_has_a_row_per_completion_and_shows_titles_as_they_are(sampled):
    sample = samples_of(sampled, count=1, completions=3)[0]
    first, *others = sample.completions
    odd = replace(
        sample, completions=(replace(first, item="Salt | *Pepper*_[x]", thinking=("red |\n pie", "<b>")), *others)
    )
    text = markdown([odd])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    assert r"| Salt \| \*Pepper\*\_\[x\] | red \| pie / &lt;b> |" in text
    assert f"**target** {sample.target}" in text


def test_thinking_stands_beside_the_item(tmp_path):
    thinking = Session.build(small_config(tmp_path, "layout=blocked", "layout.budget=3", "rewards.format.weight=0.2"))
    module = attach(rl_module(thinking, tmp_path))
    module.experience(0)
    experience, rewards, prompts = module.sampled
    texts = ["red new", "usual"]
    words = [thinking.policy.tokenizer(text, add_special_tokens=False)["input_ids"][:3] for text in texts]
    layout = thinking.layout
    blocks = [words[0], *[words[1]] * (layout.steps - 1)]
    tokens = layout.compose(torch.arange(32)[:, None], [blocks] * 32)
    zeros = torch.zeros(tokens.shape)
    drawn = as_completions(layout, tokens, experience.completions.group_size)
    module.sampled = (replace(experience, completions=drawn, advantages=zeros, weights=zeros), rewards, prompts)
    written = {}
    board = SimpleNamespace(add_text=lambda tag, text, step: written.update({tag: text}))
    trainer = SimpleNamespace(is_global_zero=True, global_step=0, logger=SimpleNamespace(experiment=board))
    RolloutSamples(thinking.dataset.catalog, tmp_path / "samples.jsonl").on_validation_end(trainer, module)
    (line,) = (tmp_path / "samples.jsonl").read_text().splitlines()
    decoded = [thinking.policy.tokenizer.decode(block).strip() for block in blocks]
    for sample in json.loads(line)["samples"]:
        assert [completion["thinking"] for completion in sample["completions"]] == [decoded] * len(
            sample["completions"]
        )
    assert "| item | thinking | drawn |" in written["rollouts"]
    assert f"| {' / '.join(decoded)} |" in written["rollouts"]


def test_an_advantage_of_a_step_is_that_of_its_chosen_tokens(sampled):
    experience, rewards, prompts, session = sampled
    rollout = experience.completions
    forced = replace(rollout, chosen=torch.zeros_like(rollout.chosen), step_ids=torch.zeros_like(rollout.step_ids))
    forced.chosen[:, 0] = True
    advantages = torch.zeros_like(experience.advantages)
    advantages[:, 0] = 0.75
    same = replace(experience, completions=forced, advantages=advantages)
    row = samples_of((same, rewards, prompts, session), count=1, completions=1)[0].completions[0]
    assert row.advantages == (0.75, 0.0, 0.0, *[0.0] * (rollout.num_steps - 3))
