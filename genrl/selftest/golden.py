"""From a case of the golden file to an objective, a rollout and rewards; every number comes from the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.objectives import OBJECTIVES, Objective
from genrl.ops import segment_gather
from genrl.selftest.engine import largest
from genrl.selftest.world import Found, World

Config = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A golden case, ready to run."""

    objective: Objective
    rollout: Completions
    rewards: Rewards
    logps: Tensor
    expected: dict[str, Any]

    def prepared(self) -> Experience:
        """The experience, with what depends on the current policy renewed as the trainer does it."""
        experience = self.objective.prepare(self.rollout, self.rewards)
        return self.objective.before_step(Scores(self.logps), experience)

    def run(self, experience: Experience, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the log-probabilities."""
        logps = logps.detach().clone().requires_grad_()
        output = self.objective.loss(Scores(logps), experience)
        return output.loss.detach(), torch.autograd.grad(output.loss, logps)[0]


def golden_cases() -> dict[str, Any]:
    """The file of golden cases that comes with the package."""
    cases: dict[str, Any] = json.loads(files("genrl.selftest").joinpath("golden_objectives.json").read_text())
    return cases


def golden_difference(world: World) -> Found:
    """Advantages, loss and gradient of every case, against those of the file."""
    golden, differences = golden_cases(), []
    for name in golden["cases"]:
        case = build(golden, name)
        experience = case.prepared()
        loss, gradient = case.run(experience, case.logps)
        wanted = numbers(case.expected["grad_logp_new"])
        differences += [
            gradient - wanted,
            loss - case.expected["loss"],
            experience.advantages - per_token(case.expected["advantages"], case),
        ]
    return Found(largest(differences).difference, len(golden["cases"]))


def per_token(values: list[Any], case: Case) -> Tensor:
    """Advantages of rows or steps, spread to chosen tokens."""
    if "advantage_per_token" in case.expected:
        return numbers(case.expected["advantage_per_token"])
    advantages = numbers(values)
    if advantages.dim() == 2:
        return segment_gather(advantages, case.rollout.step_ids)
    return advantages[:, None] * case.rollout.chosen


# Options of the code by the names they have in the file; a pair of them is a list there.
CLIP, SCALES = {"clip": "clip_low clip_high"}, {"std_ddof": "ddof", "std_eps": "eps"}
NAMES: dict[str, dict[str, str]] = {
    "dr_grpo": {**CLIP, "L_max": "length", "beta": "kl_coef"},
    "grpo": {**CLIP, **SCALES, "beta": "kl_coef"},
    "dapo": {**CLIP, **SCALES, "beta": "kl_coef"},
    "gspo": CLIP,
    "cispo": {"is_weight_bounds": "weight_min weight_max"},
    "ecpo": {"eps": "clip", "delta": "delta", "beta": "kl_coef"},
    "gbpo": {},
    "gdpo": {**CLIP, "ddof": "ddof", "eps_group": "eps"},
    "bapo": {name: name for name in ("low", "high", "step_low", "step_high")} | {"beta": "kl_coef"},
    "sapo": {**CLIP, **SCALES, "beta": "kl_coef", "std_guard": "guard", "dual_clip_c": "dual_clip"},
    "sage": {"eps_boost": "boost", "eps_clip": "clip", "beta_div": "beta", "H_bar": "ema_init"}
    | {name: name for name in ("phi", "ratio_level", "ddof", "eps")},
}


def _reduction(config: Config) -> str:
    names = {"seq_mean_token_mean": "sequence", "token_mean": "token", "step-normalised": "step"}
    return next(ours for theirs, ours in names.items() if config["agg"].startswith(theirs))


def _described(objective: str, config: Config) -> Config:
    """Options that the file describes in words."""
    reward = config.get("reward", "")
    match objective:
        case "grpo":
            return {"reduction": _reduction(config)}
        case "gspo":
            return {"level": "sequence_token" if "sg(" in config["ratio"] else "sequence"}
        case "ecpo":
            return {"level": config["granularity"].split()[0]}
        case "gbpo":
            advantage = "group" if config["adv"].startswith("group") else "sign"
            return {"level": config["granularity"].split()[0], "advantage": advantage}
        case "gdpo":
            return {"reduction": _reduction(config), "kl_coef": 0}
        case "bapo" if "rho0" in config:
            return {"variant": "paper", "target": config["rho0"]}
        case "bapo":
            return {"variant": "code", "target": config["target_pos_over_neg"]}
        case "sapo":
            return {
                "reduction": _reduction(config),
                "scope": "think_only" if "think spans only" in config.get("scope", "") else "think_and_sid",
                "match": "prefix" if reward.startswith("prefix") else "per_level",
                "ablation": "no_step_advantage" if reward.startswith("sum_k") else "none",
            }
        case "sage":
            form = "clipped" if config["form"].startswith("Algorithm 1") else "gradient"
            return {"form": form, "diversity": "slate"}
    return {}


def options(objective: str, config: Config) -> Config:
    """Options called as in the code from a configuration of the file."""
    found = _described(objective, config)
    for theirs, ours in NAMES[objective].items():
        if theirs in config:
            pair = " " in ours
            found |= zip(ours.split(), config[theirs] if pair else [config[theirs]], strict=True)
    return found


def build(golden: dict[str, Any], name: str) -> Case:
    """Make the case called `name`."""
    expected = golden["cases"][name]
    config = expected["config"]
    objective = next(key for key in NAMES if name.startswith(key))
    setup = golden["slate_setup"] if objective == "sage" else golden["token_setup"]
    make = slate_rollout if objective == "sage" else token_rollout
    rewards = slate_rewards(setup) if objective == "sage" else token_rewards(setup, config, objective)
    built = OBJECTIVES.build(objective, options(objective, config))
    return Case(built, make(setup), rewards, numbers(setup["logp_new"]), expected)


def numbers(values: object) -> Tensor:
    """Nested lists as float64."""
    return torch.tensor(values, dtype=torch.float64)


def _group_size(groups: list[int]) -> int:
    size = groups.count(groups[0])
    assert groups == [group for group in sorted(set(groups)) for _ in range(size)]
    return size


def _rollout(setup: dict[str, Any], groups: str, **known: Any) -> Completions:  # noqa: ANN401 (fields of many types)
    mask = torch.tensor(setup["mask"], dtype=torch.bool)
    return Completions(
        tokens=torch.zeros(mask.shape, dtype=torch.int64),  # what no objective looks at
        chosen=mask,
        logps=numbers(setup["logp_old"]),
        group_size=_group_size(setup[groups]),
        **known,
    )


def token_rollout(setup: dict[str, Any]) -> Completions:
    """Completions of the cases that look at tokens."""
    rows, steps = len(setup["mask"]), len(setup["match"][0])
    return _rollout(
        setup,
        "group",
        step_ids=torch.tensor(setup["step_ids"]),
        item_ids=torch.tensor([[0 if kind == "sid" else -1 for kind in row] for row in setup["token_kind"]]),
        codes=torch.zeros(rows, steps, dtype=torch.int64),
        items=torch.zeros(rows, 1, dtype=torch.int64),
        num_steps=steps,
        ref_logps=numbers(setup["logp_ref"]),
    )


def slate_rollout(setup: dict[str, Any]) -> Completions:
    """Completions of the cases that look at slates."""
    categories, items = torch.tensor(setup["categories"]), torch.tensor(setup["item_ids"])
    none = torch.zeros_like(categories)
    known = {"step_ids": items, "item_ids": items, "codes": none, "items": none, "categories": categories}
    return _rollout(setup, "user", num_steps=categories.shape[1], **known)


def token_rewards(setup: dict[str, Any], config: Config, objective: str) -> Rewards:
    """Rewards of a case: the matches for SAPO, else what it names, or the summed match where it has thresholds."""
    components = {name: numbers(values) for name, values in setup["rewards"].items()}
    if "rewards" in config:
        weights = dict(zip(config["rewards"], map(float, config["weights"]), strict=True))
        return Rewards({name: components[name] for name in weights}, weights)
    if objective == "sapo":
        return Rewards({"match": numbers(setup["match"])}, {"match": 1.0})
    named = config.get("reward", "count").split()[0].removesuffix("_second_group")
    return Rewards({"outcome": components.get(named, components["count"])}, {"outcome": 1.0})


def slate_rewards(setup: dict[str, Any]) -> Rewards:
    """Rewards of the cases that look at slates."""
    components = {f"reward{m}": values for m, values in enumerate(numbers(setup["rewards"]).unbind(1))}
    weights = dict(zip(components, setup["weights"], strict=True))
    return Rewards(components, weights)
