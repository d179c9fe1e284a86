import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrl.errors import UnsupportedError
from genrl.policy.model import Policy
from genrl.policy.share import WAYS, Shape, choose, cost, wrong_ways
from tests.models import local_config, make_policy, save_local_model

SHORT = Shape(prompts=32, group=16, context=60, depth=3)
LONG = Shape(prompts=1, group=16, context=1024, depth=199)


@pytest.mark.parametrize("decode", [True, False])
def test_short_completions_hang_in_a_tree(decode):
    assert choose(make_policy(), SHORT, decode=decode) == "tree"


def test_long_completions_are_scored_in_rows_of_their_own():
    assert choose(make_policy(), LONG, decode=False) == "expand"


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("shape", [SHORT, LONG])
def test_repeating_the_prompt_is_never_the_cheapest(shape, decode):
    policy = make_policy()
    costs = {way: cost(way, shape, policy, decode=decode) for way in WAYS}
    assert max(costs, key=costs.__getitem__) == "naive" or costs["naive"] > 2 * min(costs.values())


@pytest.mark.parametrize("way", WAYS)
def test_the_user_may_choose(way):
    policy = make_policy()
    policy.branching = way
    assert choose(policy, LONG, decode=False) == way


def test_activation_checkpointing_excludes_ways_with_a_cache():
    policy = make_policy()
    policy.checkpoint_activations()
    assert choose(policy, LONG, decode=False) == "expand"  # nothing is dropped in eval mode
    policy.update_mode()
    assert choose(policy, LONG, decode=False) == "tree"
    assert choose(policy, LONG, decode=True) == "naive"
    policy.branching = "expand"
    with pytest.raises(UnsupportedError, match=r"trainer\.branching=expand .* activation checkpointing .*auto"):
        choose(policy, LONG, decode=False)
    policy.eval()
    assert choose(policy, LONG, decode=True) == "expand"


def test_a_sliding_window_is_seen_in_the_configuration(tmp_path):
    folder = save_local_model(
        tmp_path,
        "qwen3",
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=0,
    )
    policy = make_policy(local_config(folder))
    assert policy.window == 8
    assert choose(policy, Shape(2, 4, 5, 3), decode=True) == "tree"  # fits into the window
    with pytest.warns(UserWarning, match=r"without the way 'tree': its layers see 8 tokens and the sequence has 14"):
        assert choose(policy, Shape(2, 4, 11, 3), decode=True) == "expand"
    policy.branching = "tree"
    with pytest.raises(UnsupportedError, match=r"trainer\.branching=tree is wrong .* see 8 tokens"):
        choose(policy, Shape(2, 4, 11, 3), decode=True)


class Unmasked(nn.Module):
    """A decoder whose tokens see the sum of all earlier ones of their row, whatever the mask says."""

    def __init__(self, decoder: nn.Module, strict: bool) -> None:
        super().__init__()
        self.embed_tokens = decoder.embed_tokens
        self.strict = strict

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> object:
        if self.strict and attention_mask.dim() == 4:
            raise ValueError("attention masks of four dimensions are not known here")
        states = self.embed_tokens(input_ids).cumsum(1)
        return type("Output", (), {"last_hidden_state": states})


@pytest.mark.parametrize(
    ("strict", "message"),
    [(False, r"do not keep completions apart \(relative error"), (True, r"refuse it \(ValueError: attention masks")],
)
def test_layers_that_ignore_or_refuse_the_mask_are_found_and_run_the_naive_way(strict, message):
    policy = make_policy()
    policy.base.model = Unmasked(policy.decoder, strict)
    with pytest.warns(UserWarning, match="is run without the way") as notices:
        assert choose(policy, SHORT, decode=True) == "naive"
    texts = [str(notice.message) for notice in notices]
    assert len(texts) == 2
    assert re.search("'tree': its layers " + message, texts[0])
    assert "'expand': its layers do not keep" in texts[1]
    assert choose(policy, SHORT, decode=True) == "naive"  # said once


def test_trying_a_model_leaves_its_mode_alone():
    policy: Policy = make_policy().train()
    policy.decoder.layers[0].mlp.eval()
    choose(policy, SHORT, decode=True)
    assert policy.training
    assert not policy.decoder.layers[0].mlp.training
    assert policy.refused_ways == {torch.device("cpu"): {}}
    assert all(p.grad is None for p in policy.parameters())
    assert torch.is_grad_enabled()


def drift(decoder: nn.Module, inputs: object, options: dict[str, Tensor], output: Any) -> Any:
    """An error of 8% that depends on the shape of a pass, as the rounding of many layers in bfloat16 does."""
    states, tokens = output.last_hidden_state, options["input_ids"]
    draw = torch.Generator().manual_seed(31 * tokens.shape[0] + tokens.shape[1])
    error = torch.randn(states.shape, generator=draw) * states.norm(dim=-1, keepdim=True) / states.shape[-1] ** 0.5
    output.last_hidden_state = states + 0.08 * error
    return output


def test_rounding_as_large_as_that_of_plain_passes_refuses_no_way_and_a_leak_still_does():
    policy = make_policy()
    with torch.no_grad():
        for value in policy.parameters():
            value.mul_(3.0 if value.dim() > 1 else 1.0)  # far from uniform attention, as trained weights are
    hook = policy.decoder.register_forward_hook(drift, with_kwargs=True)
    assert wrong_ways(policy, 20) == {}
    hook.remove()
    policy.refused_ways.clear()
    policy.base.model = Unmasked(policy.decoder, strict=False)
    policy.branching = "expand"
    assert set(wrong_ways(policy, 20)) == {"tree", "expand", "share"}
