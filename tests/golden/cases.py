"""From a case of the golden file to an objective, a rollout and rewards; every number comes from the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrl.batches import Completions, Experience, Rewards, Scores
from genrl.objectives import OBJECTIVES, Objective

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


def _pick(config: Config, **names: str) -> Config:
    """Options called as in the code from values called as in the file."""
    return {option: config[key] for option, key in names.items() if key in config}


def _clip(config: Config) -> Config:
    return dict(zip(("clip_low", "clip_high"), config["clip"], strict=True)) if "clip" in config else {}


def _reduction(config: Config) -> Config:
    names = {"seq_mean_token_mean": "sequence", "token_mean": "token", "step-normalised": "step"}
    return {"reduction": next(ours for theirs, ours in names.items() if config["agg"].startswith(theirs))}


def _grpo(config: Config) -> Config:
    return {**_clip(config), **_reduction(config), **_pick(config, ddof="std_ddof", eps="std_eps", kl_coef="beta")}


def _dr_grpo(config: Config) -> Config:
    return {**_clip(config), **_pick(config, length="L_max", kl_coef="beta")}


def _dapo(config: Config) -> Config:
    return {**_clip(config), **_pick(config, ddof="std_ddof", eps="std_eps", kl_coef="beta")}


def _gspo(config: Config) -> Config:
    return {**_clip(config), "level": "sequence_token" if "sg(" in config["ratio"] else "sequence"}


def _cispo(config: Config) -> Config:
    return dict(zip(("weight_min", "weight_max"), config["is_weight_bounds"], strict=True))


def _ecpo(config: Config) -> Config:
    return {"level": config["granularity"].split()[0], **_pick(config, clip="eps", delta="delta", kl_coef="beta")}


def _gbpo(config: Config) -> Config:
    advantage = "group" if config["adv"].startswith("group") else "sign"
    return {"level": config["granularity"].split()[0], "advantage": advantage}


def _gdpo(config: Config) -> Config:
    return {**_clip(config), **_reduction(config), **_pick(config, ddof="ddof", eps="eps_group"), "kl_coef": 0}


def _bapo(config: Config) -> Config:
    variant = "paper" if "rho0" in config else "code"
    picked = _pick(config, low="low", high="high", step_low="step_low", step_high="step_high", kl_coef="beta")
    return {"variant": variant, "target": config.get("rho0", config.get("target_pos_over_neg")), **picked}


def _sapo(config: Config) -> Config:
    options = {**_clip(config), **_reduction(config)}
    options |= _pick(config, kl_coef="beta", ddof="std_ddof", eps="std_eps", guard="std_guard", dual_clip="dual_clip_c")
    options["scope"] = "think_only" if "think spans only" in config.get("scope", "") else "think_and_sid"
    options["match"] = "prefix" if config.get("reward", "").startswith("prefix") else "per_level"
    options["ablation"] = "no_step_advantage" if config.get("reward", "").startswith("sum_k") else "none"
    return options


def _sage(config: Config) -> Config:
    form = "clipped" if config["form"].startswith("Algorithm 1") else "gradient"
    picked = _pick(config, boost="eps_boost", clip="eps_clip", beta="beta_div", ema_init="H_bar", phi="phi")
    return {
        "form": form,
        "diversity": "slate",
        **picked,
        **_pick(config, ratio_level="ratio_level", ddof="ddof", eps="eps"),
    }


OPTIONS: dict[str, Callable[[Config], Config]] = {
    "dr_grpo": _dr_grpo,
    "grpo": _grpo,
    "dapo": _dapo,
    "gspo": _gspo,
    "cispo": _cispo,
    "ecpo": _ecpo,
    "gbpo": _gbpo,
    "gdpo": _gdpo,
    "bapo": _bapo,
    "sapo": _sapo,
    "sage": _sage,
}


def build(golden: dict[str, Any], name: str) -> Case:
    """Make the case called `name`."""
    expected = golden["cases"][name]
    config = expected["config"]
    objective = next(key for key in OPTIONS if name.startswith(key))
    setup = golden["slate_setup"] if objective == "sage" else golden["token_setup"]
    make = slate_rollout if objective == "sage" else token_rollout
    rewards = slate_rewards(setup) if objective == "sage" else token_rewards(setup, config, objective)
    built = OBJECTIVES.build(objective, OPTIONS[objective](config))
    return Case(built, make(setup), rewards, numbers(setup["logp_new"]), expected)


def numbers(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _group_size(groups: list[int]) -> int:
    size = groups.count(groups[0])
    assert groups == [group for group in sorted(set(groups)) for _ in range(size)]
    return size


def _blank(rows: int, length: int, group_size: int) -> Config:
    """What no objective looks at."""
    return {
        "tokens": torch.zeros(rows, length, dtype=torch.int64),
        "group_size": group_size,
    }


def token_rollout(setup: dict[str, Any]) -> Completions:
    mask = torch.tensor(setup["mask"], dtype=torch.bool)
    rows, length = mask.shape
    steps = len(setup["match"][0])
    return Completions(
        **_blank(rows, length, _group_size(setup["group"])),
        chosen=mask,
        step_ids=torch.tensor(setup["step_ids"]),
        item_ids=torch.tensor([[0 if kind == "sid" else -1 for kind in row] for row in setup["token_kind"]]),
        codes=torch.zeros(rows, steps, dtype=torch.int64),
        items=torch.zeros(rows, 1, dtype=torch.int64),
        logps=numbers(setup["logp_old"]),
        num_steps=steps,
        ref_logps=numbers(setup["logp_ref"]),
    )


def slate_rollout(setup: dict[str, Any]) -> Completions:
    mask = torch.tensor(setup["mask"], dtype=torch.bool)
    rows, length = mask.shape
    categories = torch.tensor(setup["categories"])
    return Completions(
        **_blank(rows, length, _group_size(setup["user"])),
        chosen=mask,
        step_ids=torch.tensor(setup["item_ids"]),
        codes=torch.zeros_like(categories),
        items=torch.zeros_like(categories),
        logps=numbers(setup["logp_old"]),
        num_steps=categories.shape[1],
        categories=categories,
        item_ids=torch.tensor(setup["item_ids"]),
    )


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
    components = {f"reward{m}": values for m, values in enumerate(numbers(setup["rewards"]).unbind(1))}
    weights = dict(zip(components, setup["weights"], strict=True))
    return Rewards(components, weights)
