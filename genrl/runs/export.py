"""What a finished run has learnt as a model folder that others can serve: transformers, vLLM and the like."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from genrl.errors import CheckpointError, DataError, UnsupportedError
from genrl.files import flush, move, write_json
from genrl.policy.load import sid_token
from genrl.policy.merge import log_probs, merged, unquantised, write_out
from genrl.policy.model import Policy, PolicySpec
from genrl.recommenders.base import equip
from genrl.recommenders.policy import PolicyRecommender
from genrl.runs.recommend import load_recommender
from genrl.training.fitting import quiet_libraries

SIDS, DECODING = "sids.json", "decoding.json"
"""{item id: [SID token of each level]}, as `sid.name=import` reads it; how requests are written and read."""
CHECKED = 16
"""Random histories that the written model is compared with the run's on."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the policy of the run."""

    folder: Path
    items: int
    parameters: int
    dtype: str
    apart: float
    """Mean absolute difference of log-probabilities, nats."""
    furthest: float
    """The largest of them."""
    quantised: float | None
    """The same mean between 4-bit weights and those that they were made from; None: weights have no 4 bits."""
    prior: str | None
    """A prior that has its say in the run's rankings, and not in the model."""

    def lines(self) -> list[str]:
        """What is to be said of it."""
        found = [
            f"{self.folder}: a model of transformers with {self.parameters:,} parameters ({self.dtype}), its "
            f"tokenizer, and the SIDs of {self.items:,} items in {SIDS}",
            f"read back and compared with the run on {CHECKED} histories: log-probabilities differ by "
            f"{self.apart:.2g} nats on average, {self.furthest:.2g} at most",
        ]
        if self.quantised is not None:
            found.append(
                f"that is rounding to {self.dtype}: the 4-bit weights that were trained stand in it as the numbers "
                f"that they mean. Base weights before quantisation with the same adapters would differ by "
                f"{self.quantised:.2g} on average"
            )
        if self.prior is not None:
            found.append(f"the run ranks with the prior {self.prior}, which is not in the model")
        return found


def export(folder: Path, out: Path, overrides: Sequence[str] = ()) -> Exported:
    """Write the policy of a finished run as a model folder; the folder appears in one move, or not at all.

    Args:
        folder: of the run.
        out: folder to write, which must not be there.
        overrides: `key=value` texts over the configuration of the run, a moved `model.name` for one.

    Raises:
        DataError: if `out` is there.
        UnsupportedError: if the run's recommender is no language model.
        CheckpointError: as `load_recommender`, or if the written model does not say what the run's policy says.
    """
    if out.exists():
        raise DataError(f"{out} is there already. Give another folder, or remove it.")
    quiet_libraries()
    config, found = load_recommender(folder, overrides)
    if not isinstance(found, PolicyRecommender) or not isinstance(found.spec, PolicySpec):
        name = config.baseline["name"] if config.stages == ["baseline"] else f"model.name={config.model.name}"
        raise UnsupportedError(
            f"{folder} is a run of {name}, which is no language model: there is no model folder of transformers for "
            f"it. Use `genrl.load` to rank with it from Python."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        made = _write(found, temporary, out)
        for file in temporary.iterdir():
            flush(file)
        move(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made


def _write(found: PolicyRecommender, folder: Path, out: Path) -> Exported:
    """Merge, write, read back and compare."""
    config, policy, spec = found.config, cast(Policy, found.policy).eval(), cast(PolicySpec, found.spec)
    table, catalog = found.problem.table, found.problem.dataset.catalog
    decoding = found.decoding()
    prompts = _prompts(found)
    wanted = log_probs(policy.base, *prompts)
    quantised = None
    if config.model.quantize != "none":
        plain = unquantised(policy, config.model, spec)
        equip(plain, config.trainer)
        quantised = _apart(log_probs(plain.base, *prompts), wanted)[0]
        write_out(policy, plain)
        policy = plain
    model = merged(policy)
    model.save_pretrained(folder)
    spec.tokenizer.save_pretrained(folder)
    tokens = [[sid_token(level, code) for level, code in enumerate(codes)] for codes in table.codes.tolist()]
    write_json(folder / SIDS, dict(zip(catalog.item_ids, tokens, strict=True)))
    write_json(folder / DECODING, decoding)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=config.model.trust_remote_code)
    apart, furthest = _apart(log_probs(again.to(prompts[0].device).eval(), *prompts), wanted)
    limit = quantised if quantised is not None else (1e-3 if model.dtype == torch.float32 else 0.1)
    if not apart <= limit:
        raise CheckpointError(
            f"the model that was written does not say what the run says: log-probabilities differ by {apart:.3g} nats "
            f"on average, and {limit:.3g} is what rounding explains. Nothing was kept. Please report it, with "
            f"config.yaml of the run."
        )
    size, kind = sum(value.numel() for value in again.parameters()), str(again.dtype).removeprefix("torch.")
    prior = None if found.prior is None else str(config.prior.run)
    return Exported(out, len(catalog), size, kind, apart, furthest, quantised, prior)


def _prompts(found: PolicyRecommender) -> tuple[Tensor, Tensor]:
    """Tokens and mask [P, L] of prompts with random histories of up to `data.max_history` items."""
    generator = torch.Generator().manual_seed(0)
    items, longest = len(found.problem.dataset.catalog), found.config.data.max_history
    histories = torch.randint(items, (CHECKED, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (CHECKED, 1), generator=generator)
    histories = histories.masked_fill(torch.arange(longest) < longest - lengths, -1)
    days = torch.arange(longest - 1, -1, -1).double().expand(len(histories), -1)
    tokens, mask = found.template.render(histories, ages=days)
    return tokens.to(found.device), mask.to(found.device)


def _apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean and largest absolute difference."""
    gaps = (one - other).abs()
    return float(gaps.mean()), float(gaps.max())
