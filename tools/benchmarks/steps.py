"""Whole RL steps against TRL's `GRPOTrainer`."""

import copy
import logging
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from benchmarks.checks import require
from benchmarks.figures import Figure, compare, emptied, interleave, now
from benchmarks.inputs import BLOCKS, Inputs, Sizes, make_inputs, make_thinking
from benchmarks.peers import grammar
from genrl.batches import Completions, Targets
from genrl.config.schema import EvaluateConfig, RLConfig, RolloutConfig, TrainerConfig
from genrl.metrics.functional import seen
from genrl.objectives import OBJECTIVES
from genrl.prompts.template import EvaluationBatches
from genrl.rewards.base import Reward, RewardContext, Verifier
from genrl.runs.evaluate import ranking_metrics
from genrl.training.fitting import make_trainer
from genrl.training.rl import RLModule
from genrl.training.stream import PromptOrder

STEP_GOAL = 13.0
LEARNING_RATE = 1e-4
THINKING_ROWS = 64
"""Completions per micro-batch of TRL with thinking."""


def item_reward(items: Tensor, targets: Tensor) -> Tensor:
    """Reward [n] of items [n] for targets [n, M]: 1 for a target, and a fixed pseudo-random part of 1 for any item.

    With a random policy an exact match alone would leave nearly all groups without a difference in reward; genrl
    leaves such groups out and TRL does not, so the comparison would be unfair.
    """
    noise = (items * 2654435761 % 2**32).float() / 2**32
    return seen(items[:, None], targets)[:, 0].float() + noise


class Notes:
    """What one block of steps left behind: a time stamp after each step, and the items and rewards of each call."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.items: list[Tensor] = []
        self.rewards: list[Tensor] = []

    def stamp(self, *_: object) -> None:
        """A step has ended."""
        self.stamps.append(now())

    def judge(self, items: Tensor, targets: Tensor) -> Tensor:
        """`item_reward`, noted."""
        self.items.append(items)
        self.rewards.append(item_reward(items, targets))
        return self.rewards[-1]

    def seconds(self) -> float:
        """Median seconds per step, the first step left out."""
        return median(after - before for before, after in pairwise(self.stamps))


class ItemReward(Reward):
    """The reward of `Notes` for genrl."""

    level = "outcome"

    def __call__(self, rollout: Completions, targets: Targets, context: RewardContext) -> Tensor:
        """Return [B]."""
        notes: Notes = self.config
        return notes.judge(rollout.items[:, 0], targets.items)


def steps(sizes: Sizes, repeats: int) -> list[Figure]:
    """Blocks of steps in turn: a fresh trainer each, the same model, prompts, group, length, reward and optimiser."""
    inputs = make_inputs(sizes)
    return _steps("step", f"group {sizes.groups[0]}", inputs, sizes.splits, repeats, STEP_GOAL)


def thinking_steps(sizes: Sizes, repeats: int) -> list[Figure]:
    """The same with think blocks before the SIDs; TRL computes as many rows at a time as was fastest without."""
    inputs = make_thinking(replace(sizes, steps=(3, 2)))
    group, prompt = sizes.groups[0], inputs.prompts.tokens.shape[1]
    split = max(1, len(inputs.prompts) * group // THINKING_ROWS)
    setting = f"{len(inputs.prompts)} x {group}, {prompt} + {BLOCKS} x {sizes.budget} tokens"
    return _steps("reasoning-step", setting, inputs, (split,), repeats)


def _steps(
    name: str, setting: str, inputs: Inputs, splits: tuple[int, ...], repeats: int, goal: float | None = None
) -> list[Figure]:
    """Figures of steps of genrl and of TRL, its batches divided into some numbers of parts."""
    group, counts = inputs.sizes.groups[0], inputs.sizes.steps
    blocks: dict[str, list[Notes]] = defaultdict(list)
    runs = {"genrl": partial(genrl_block, inputs, group, counts[0])}
    rows = len(inputs.prompts) * group
    for split in splits:
        runs[f"{rows // split} x {split}"] = partial(trl_block, inputs, group, counts[1], split)

    def measured(who: str) -> float:
        emptied()
        notes = runs[who]()
        blocks[who].append(notes)
        return notes.seconds()

    quiet_trainers()
    seconds = interleave(name, {who: partial(measured, who) for who in runs}, repeats)
    peers = [who for who in runs if who != "genrl"]
    checked = "; ".join(_same_signal(blocks["genrl"], blocks[who], who) for who in peers)
    checked += "; reward: exact match + a hash of the item, so that no group is dead"
    best = min(peers, key=lambda who: median(seconds[who]))
    found = []
    for who in peers:
        times, reach = (seconds["genrl"], seconds[who]), goal if who == best else None
        what = f"{setting}, TRL GRPOTrainer {who}{' (its best)' if who == best and len(peers) > 1 else ''}"
        found.append(compare(name, what, *times, unit="s/step", goal=reach, checked=checked))
    return found


def quiet_trainers() -> None:
    """Leave out notices that are repeated for each block."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for module in ("lightning", "trl", "transformers"):
        warnings.filterwarnings("ignore", module=module)


def _same_signal(ours: Sequence[Notes], theirs: Sequence[Notes], name: str) -> str:
    """Only items were judged, and the mean rewards of first steps agree within 5 standard errors."""
    means, errors = [], []
    for notes in (ours, theirs):
        items = torch.cat([part for note in notes for part in note.items])
        require(bool((items >= 0).all()), f"step: {int((items < 0).sum())} completions are no catalogue item.")
        rewards = torch.cat([note.rewards[0] for note in notes])  # where both sides have the same policy
        means.append(float(rewards.mean()))
        errors.append(float(rewards.var()) / rewards.numel())
    limit = 5 * sum(errors) ** 0.5
    require(
        abs(means[0] - means[1]) <= limit,
        f"step: mean reward {means[0]:.4f} of genrl, {means[1]:.4f} of TRL {name}; more than {limit:.4f} apart.",
    )
    return f"TRL {name}: only items, mean reward {means[0]:.3f} and {means[1]:.3f}"


def genrl_block(
    inputs: Inputs,
    group: int,
    count: int,
    strategy: str | Strategy = "auto",
    after: Callable[[], object] | None = None,
) -> Notes:
    """A few steps of `RLModule` under Lightning's trainer, from the initial weights; `after` is called behind each."""
    notes = Notes()
    catalog, codes = inputs.maker.dataset.catalog, inputs.layout.codes.cpu()
    prompts = len(inputs.prompts)
    verifier = Verifier({"item": (ItemReward(notes), 1.0)}, RewardContext.from_catalog(catalog, codes))
    policy = copy.deepcopy(inputs.policy)
    with tempfile.TemporaryDirectory() as folder:
        module = RLModule(
            OBJECTIVES.build("grpo", {"kl_coef": 0.0}),  # as TRL with beta 0: no reference
            verifier,
            PromptOrder(inputs.positions, prompts, seed=0),
            inputs.maker,
            catalog.categories,
            RLConfig(max_steps=count, learning_rate=LEARNING_RATE, validate_every=count, betas=[0.9, 0.999]),
            RolloutConfig(group_size=group, prompts=prompts),
            seed=int(torch.randint(2**31, ())),
            build=lambda: policy,
            layout=inputs.layout,
            validation=EvaluationBatches(inputs.maker, inputs.positions[:0], 1),
            metrics=ranking_metrics(EvaluateConfig(), catalog, codes),
            evaluation=EvaluateConfig(),
            kind="raw",
            max_grad_norm=1.0,
            folder=Path(folder),
        )
        options = {
            "callbacks": [LambdaCallback(on_train_batch_end=lambda *_: after() if after else notes.stamp())],
            "strategy": strategy,
            "limit_val_batches": 0,
            "default_root_dir": folder,
        }
        gpu, low = inputs.sizes.device == "cuda", inputs.sizes.precision == "bf16"
        hardware = TrainerConfig(accelerator="gpu" if gpu else "cpu", precision="bf16-mixed" if low else "32-true")
        make_trainer(hardware, max_steps=count, **options).fit(module)
    return notes


def trl_block(inputs: Inputs, group: int, count: int, split: int) -> Notes:
    """A few steps of TRL's trainer from the same weights, its sampler constrained by genrl's trie.

    `GenerationConfig` cannot carry a constraint, so the model's `generate` is wrapped.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    notes = Notes()
    prompts, layout = inputs.prompts, inputs.layout
    model = copy.deepcopy(inputs.policy.model)
    generate = model.generate
    model.generate = lambda **options: generate(**options, **grammar(layout, len(options["input_ids"])))
    rows = [tokens[mask].tolist() for tokens, mask in zip(prompts.tokens, prompts.mask, strict=True)]
    texts = ["".join(inputs.policy.tokenizer.convert_ids_to_tokens(row)) for row in rows]
    require(inputs.policy.tokenizer(text=texts)["input_ids"] == rows, "step: TRL would see other prompts than genrl.")

    def reward(completion_ids: list[list[int]], target: list[int], **_: object) -> list[float]:
        tokens = torch.tensor(completion_ids, device=prompts.tokens.device)
        items = layout.read(tokens, layout.replay(tokens)).items[:, 0]
        return notes.judge(items, torch.tensor(target, device=items.device)[:, None]).tolist()

    class Stamps(TrainerCallback):
        def on_step_end(self, *arguments: object, **options: object) -> None:
            notes.stamp()

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=len(prompts) * group // split,
            gradient_accumulation_steps=split,
            num_generations=group,
            max_completion_length=layout.length,
            max_steps=count,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            beta=0.0,
            loss_type="grpo",
            temperature=1.0,
            gradient_checkpointing=False,
            bf16=inputs.sizes.precision == "bf16",
            use_cpu=inputs.sizes.device == "cpu",
            seed=int(torch.randint(2**31, ())),
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = Dataset.from_dict({"prompt": texts, "target": prompts.wanted.items[:, 0].tolist()})
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=data,
            processing_class=copy.deepcopy(inputs.policy.tokenizer),
            callbacks=[Stamps()],
        )
        trainer.remove_callback(PrinterCallback)
        require(not trainer.model.is_gradient_checkpointing, "step: TRL recomputes activations, which genrl does not.")
        trainer.train()
    return notes
