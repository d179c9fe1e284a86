"""What the machine could do at best, and how much of that prefill, rollout and a whole step reach."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.checks import require
from benchmarks.figures import Figure, clocked, compare, emptied, interleave, timed
from benchmarks.inputs import LEVELS, Inputs, Sizes, make_inputs
from benchmarks.steps import genrl_block, quiet_trainers
from genrl.policy.model import Policy

STEP_GOAL = 1.5
"""Times the floor that a step may take on a GPU."""
TIMES = 10
"""Calls in a row of what is too short to be timed alone."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def floors(sizes: Sizes, repeats: int) -> list[Figure]:
    """The machine's ceilings, what the engine reaches of them, and a step beside prefill and update at that rate.

    Counted are 2 FLOP per weight of the layers and token forward, and 6 forward and backward; attention's products (2%
    of them for the prompts of the card's sizes), the head and the optimiser are left out, padding is not. The floor of
    a step is the prefill as it was measured, and the update's FLOP at the rate of that prefill.
    """
    inputs = make_inputs(sizes)
    fast, group = inputs.lowered, sizes.groups[0]
    weights, tokens = fast.policy.work.token, update_tokens(fast, group)
    ran = interleave(
        "floor",
        {
            "product": per_call(product(sizes)),
            "copy": per_call(copying(sizes)),
            "prefill": timed(partial(forward, fast.policy, fast.prompts.tokens, fast.prompts.mask)),
            "update": timed(partial(backward, fast.policy, tokens)),
            "rollout": timed(partial(fast.draw, group)),
        },
        repeats,
    )
    fed = fast.prompts.tokens.numel()
    prefill, update = 2.0 * weights * fed, 6.0 * weights * tokens.numel()
    rollout = prefill + 2.0 * weights * len(fast.prompts) * group * (LEVELS - 1)
    copied = 2.0 * sizes.square**2 * DTYPES[sizes.precision].itemsize
    rate = partial(_rate, ran, _checked(inputs))
    found = [
        rate("product", 2.0 * sizes.square**3, None, f"{sizes.square} x {sizes.square} matrices, {sizes.precision}"),
        rate("copy", copied, None, f"{sizes.square} x {sizes.square} matrix, read and written"),
        rate("prefill", prefill, ("product", 2.0 * sizes.square**3), f"{fed:,} tokens"),
        rate("update", update, ("product", 2.0 * sizes.square**3), f"{tokens.numel():,} tokens, plain model"),
        rate("rollout", rollout, ("product", 2.0 * sizes.square**3), f"{len(fast.prompts)} x {group}"),
        rate("rollout", rollout_bytes(fast, group), ("copy", copied), f"{len(fast.prompts)} x {group}"),
    ]
    del fast
    floor = median(ran["prefill"]) * (1.0 + update / prefill)
    steps = _steps(inputs, group, repeats)
    setting = f"step of {len(inputs.prompts)} x {group}, over prefill and update at the prefill's rate"
    times = steps, [floor] * len(steps)
    checked = found[0].checked
    return [*found, compare("floor", setting, *times, better="lower", unit="s/step", goal=STEP_GOAL, checked=checked)]


def update_tokens(inputs: Inputs, group: int) -> Tensor:
    """Tokens [P, L + G (K - 1)] of the least that an update has to put through the model: each prompt once."""
    prompts = inputs.prompts.tokens
    generator = torch.Generator().manual_seed(0)
    shape = len(prompts), group * (LEVELS - 1)
    written = torch.randint(inputs.policy.first_ids[0], (shape[0], shape[1]), generator=generator)
    return torch.cat([prompts, written.to(prompts.device)], dim=1)


def rollout_bytes(inputs: Inputs, group: int) -> float:
    """What a rollout reads at least: the weights in each of K passes, the cache of its prompts in all but the first."""
    work, size = inputs.policy.work, DTYPES[inputs.sizes.precision].itemsize
    return size * (LEVELS * work.token + (LEVELS - 1) * work.cached * inputs.prompts.tokens.numel())


def product(sizes: Sizes) -> Callable[[], object]:
    """A product of two large square matrices."""
    one = torch.randn(sizes.square, sizes.square, generator=torch.Generator().manual_seed(0))
    one = one.to(sizes.device, DTYPES[sizes.precision])
    out = torch.empty_like(one)
    return lambda: torch.mm(one, one, out=out)


def copying(sizes: Sizes) -> Callable[[], object]:
    """A copy of a large matrix."""
    one = torch.zeros(sizes.square, sizes.square, dtype=DTYPES[sizes.precision], device=sizes.device)
    out = torch.empty_like(one)
    return lambda: out.copy_(one)


def per_call(run: Callable[[], object]) -> Callable[[], float]:
    """Seconds of one of several calls in a row."""

    def calls() -> None:
        for _ in range(TIMES):
            run()

    return lambda: clocked(calls)[0] / TIMES


@torch.no_grad()
def forward(policy: Policy, tokens: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states [P, L, H] by the plain model without its head."""
    states: Tensor = policy.decoder(input_ids=tokens, attention_mask=mask.long(), use_cache=False).last_hidden_state
    return states


def backward(policy: Policy, tokens: Tensor) -> None:
    """A pass of the plain model without its head, and the gradient of the sum of its states."""
    policy.zero_grad(set_to_none=True)
    policy.decoder(input_ids=tokens, use_cache=False).last_hidden_state.float().sum().backward()
    policy.zero_grad(set_to_none=True)


def _steps(inputs: Inputs, group: int, repeats: int) -> list[float]:
    """Seconds per step of some blocks."""
    quiet_trainers()

    def block() -> float:
        emptied()
        return genrl_block(inputs, group, inputs.sizes.steps[0]).seconds()

    return interleave("floor, steps", {"step": block}, repeats, warm_up=False)["step"]


def _rate(
    ran: dict[str, list[float]], checked: str, what: str, work: float, ceiling: tuple[str, float] | None, setting: str
) -> Figure:
    """What is done per second, beside a ceiling: what was timed in the same rounds, and its own work."""
    unit = "GB/s" if what == "copy" or (ceiling and ceiling[0] == "copy") else "GFLOP/s"
    reached = [work / seconds / 1e9 for seconds in ran[what]]
    if ceiling is None:
        return Figure("floor", f"{what}, {setting}", median(reached), None, unit, None, None, None, "higher", checked)
    most = [ceiling[1] / seconds / 1e9 for seconds in ran[ceiling[0]]]
    about = f"{what}, {setting}, of the {ceiling[0]}"
    return compare("floor", about, reached, most, better="lower", unit=unit, checked=checked)


def _checked(inputs: Inputs) -> str:
    """The layers hold as many weights as are counted."""
    layers = inputs.policy.decoder.layers
    held = sum(value.numel() for value in layers.parameters() if value.dim() > 1)
    counted = inputs.policy.work.token
    require(held == counted, f"floor: {counted:,} weights counted per token, but the layers hold {held:,}")
    return f"the layers hold the {counted:,} weights that are counted per token"
