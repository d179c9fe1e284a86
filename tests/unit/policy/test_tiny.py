from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl.policy.attention import causal_mask, prompt_positions
from genrl.policy.load import load_policy
from genrl.policy.model import Policy, states
from genrl.policy.tiny import END, PAD, START, UNKNOWN, tiny_config, tiny_model, train_tokenizer
from tests.helpers import assert_same
from tests.models import SIZES, TEXTS, TINY, make_prompts


def forward(policy: Policy) -> Tensor:
    prompts = make_prompts(policy)
    with torch.no_grad():
        return policy(prompts.tokens, causal_mask(prompts.mask), prompt_positions(prompts.mask), states)


@pytest.mark.parametrize("text", [*TEXTS, "red jam pie", "cherry  plum"])
def test_words_come_back_from_their_tokens(text):
    tokenizer = train_tokenizer(TEXTS, 300)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).strip() == text


def test_frequent_words_become_single_tokens():
    tokenizer = train_tokenizer(["red apple pie"] * 3 + ["red plum"], 300)
    assert len(tokenizer("red apple", add_special_tokens=False)["input_ids"]) == 2


def test_forms_of_a_letter_are_one():
    tokenizer = train_tokenizer(["office"], 300)
    ligature = tokenizer("o\ufb03ce", add_special_tokens=False)["input_ids"]
    assert ligature == tokenizer("office", add_special_tokens=False)["input_ids"]


def test_the_vocabulary_has_the_special_tokens_first_and_no_more_than_asked_for():
    tokenizer = train_tokenizer(TEXTS, 40)
    assert len(tokenizer) <= 40
    assert tokenizer.convert_tokens_to_ids([PAD, START, END, UNKNOWN]) == [0, 1, 2, 3]
    names = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert names == (PAD, START, END, UNKNOWN)


def test_dropout_acts_in_training_mode_only():
    dropped = load_policy(replace(TINY, dropout=0.3), SIZES, TEXTS)
    plain = load_policy(replace(TINY, dropout=0.0), SIZES, TEXTS)
    dropped.eval()
    assert_same(forward(dropped), forward(plain.eval()))
    dropped.train()
    torch.manual_seed(0)
    first, second = forward(dropped), forward(dropped)
    assert float((first - second).abs().max()) > 0.01
    torch.manual_seed(0)
    assert_same(forward(dropped), first)  # the global seed decides, so a resumed run can repeat a step
    assert_same(forward(plain.train()), forward(dropped.eval()))


def test_embeddings_and_both_branches_of_each_layer_are_dropped_out():
    model = tiny_model(tiny_config(TINY, 50), 0, dropout=0.5)
    model.train()
    tokens = torch.randint(4, 50, (4, 64), generator=torch.Generator().manual_seed(0))
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: object, arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    model.model.embed_tokens.register_forward_hook(keep("embeddings"))
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(keep(f"attention {number}"))
        layer.mlp.register_forward_hook(keep(f"mlp {number}"))
    torch.manual_seed(0)
    with torch.no_grad():
        model(tokens)
    assert len(outputs) == 1 + 2 * TINY.layers
    for name, output in outputs.items():
        assert_same((output == 0).float().mean(), torch.tensor(0.5), tolerance=0.03), name
    kept = outputs["embeddings"]
    wanted = 2 * model.model.embed_tokens.weight.detach()[tokens]
    assert_same(kept, torch.where(kept == 0, 0.0, wanted))
