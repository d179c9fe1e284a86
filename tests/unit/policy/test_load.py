import logging
import warnings

import pytest
import torch
from transformers import AutoTokenizer

from genrl.config.schema import LoraConfig, ModelConfig
from genrl.errors import CheckpointError, ConfigError
from genrl.policy.load import THINK, add_sid_tokens, load_checkpoint, load_policy, think_words
from genrl.policy.model import Policy
from genrl.policy.tiny import train_tokenizer
from tests.helpers import assert_same
from tests.models import SIZES, TEXTS, TINY, local_config, make_policy, save_local_model
from tests.models import logits as whole_logits

LORA = LoraConfig(rank=4, alpha=8)


def forward(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return logits(policy)


def logits(policy: Policy) -> torch.Tensor:
    """Of the first level's tokens behind each of four tokens."""
    tokens = torch.tensor([[1, 5, policy.first_ids[0] + 2, policy.first_ids[1]]])
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    read = lambda hidden, head: head.logits(hidden, policy.first_ids[0], SIZES[0])  # noqa: E731
    return policy(tokens, mask, torch.arange(4)[None], read)


def nudge(policy: Policy) -> None:
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))


def test_sid_tokens_of_a_level_are_contiguous_and_survive_the_tokenizer():
    policy = make_policy()
    ids = policy.tokenizer("red apple<a_3><b_0><c_6>", add_special_tokens=False)["input_ids"]
    first = policy.first_ids
    assert ids[-3:] == [first[0] + 3, first[1], first[2] + 6]
    assert [first[1] - first[0], first[2] - first[1]] == [SIZES[0], SIZES[1]]
    assert policy.tokenizer.decode(ids[:-3]).strip() == "red apple"


def test_a_tokenizer_made_for_another_sid_table_is_refused():
    tokenizer = make_policy().tokenizer
    with pytest.raises(ConfigError, match="another SID table"):
        add_sid_tokens(tokenizer, (SIZES[0] + 1, SIZES[1], SIZES[2]))


def test_the_same_seed_gives_the_same_weights_and_leaves_global_randomness_alone():
    state = torch.get_rng_state()
    one, two = load_policy(TINY, SIZES, TEXTS), load_policy(TINY, SIZES, TEXTS)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.state().items():
        assert torch.equal(value, two.state()[name])


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"vocab_size": 400}])
def test_a_local_model_gets_rows_for_the_sids(tmp_path, changes):
    policy = load_policy(local_config(save_local_model(tmp_path, **changes)), SIZES, TEXTS, "history:")
    assert policy.prefix_ids
    assert torch.isfinite(forward(policy)).all()
    rows = policy.base.get_input_embeddings().weight.detach()
    assert rows.shape[0] >= policy.first_ids[-1] + SIZES[-1]
    sid_rows = rows[policy.first_ids[0] : policy.first_ids[-1] + SIZES[-1]]
    assert 0.3 < float(sid_rows.std() / rows[: policy.first_ids[0]].std()) < 3


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_adapters_and_sid_rows_and_nothing_else(tmp_path, tied):
    folder = save_local_model(tmp_path, tie_word_embeddings=tied)
    policy = load_policy(local_config(folder, lora=LORA), SIZES, TEXTS)
    names = policy.trainable()
    assert names
    assert all("lora_" in name or "trainable_tokens" in name for name in names)
    before = forward(policy)
    rows = [value for name, value in names.items() if "trainable_tokens" in name]
    assert len(rows) == (1 if tied else 2)  # an untied head has rows of its own
    assert all(value.shape[0] == sum(SIZES) for value in rows)
    logits(policy).log_softmax(-1)[..., 0].sum().backward()
    assert all(value.grad is not None and float(value.grad.norm()) > 0 for value in rows)
    with torch.no_grad():
        for number, value in enumerate(rows, start=2):
            value.mul_(number)  # head rows must be those that are trained
    assert (forward(policy) - before).abs().max() > 1e-3
    full = policy.model(torch.tensor([[1, 5, policy.first_ids[0] + 2, policy.first_ids[1]]])).logits
    wanted = full[..., policy.first_ids[0] : policy.first_ids[0] + SIZES[0]]
    assert_same(forward(policy), wanted)
    merged = policy.model.merge_and_unload()
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied
    assert_same(merged(torch.tensor([[1, 5, policy.first_ids[0] + 2, policy.first_ids[1]]])).logits, full)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_step_moves_new_rows_of_both_tables_and_leaves_old_ones(tmp_path, tied, quantize):
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    folder = save_local_model(tmp_path, hidden_size=64, intermediate_size=128, tie_word_embeddings=tied)
    chosen = LoraConfig(rank=4, target_modules=["q_proj", "down_proj"])
    with pytest.warns(UserWarning, match="were added"):
        policy = load_policy(local_config(folder, lora=chosen, quantize=quantize), SIZES, TEXTS, thinking=True)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in policy.trainable() if "lora_" in name}
    assert adapted == {"q_proj", "down_proj"}
    every = torch.arange(policy.first_ids[-1] + SIZES[-1])
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def tables() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return policy.base.get_input_embeddings()(every).clone(), whole_logits(policy, hidden)[:, every].T

    before = tables()
    optimiser = torch.optim.AdamW(policy.trainable().values(), lr=0.01, weight_decay=0.1)
    new = torch.tensor([[1, policy.words.opening, policy.words.closing, *range(policy.first_ids[0], len(every))]])
    mask = torch.ones_like(new, dtype=torch.bool)
    read = lambda hidden, head: head.logits(hidden, 0, len(every)).log_softmax(-1)[..., 4].sum()  # noqa: E731
    policy(new, mask, torch.arange(new.shape[1])[None], read, rows="vocab").backward()
    optimiser.step()
    for old, now in zip(before, tables(), strict=True):
        moved = (now != old).any(1)
        assert moved.nonzero()[:, 0].tolist() == list(range(policy.words.opening, len(every)))


def test_weights_are_read_straight_to_where_new_tensors_are_made(tmp_path):
    config, _ = with_tokens(tmp_path, [*NAMES[0], *NAMES[1]], vocab_size=320)
    with torch.device("meta"):
        policy = load_checkpoint(config, NAMES)
    assert {value.device.type for value in policy.parameters()} == {"meta"}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_in_bfloat16_adapters_keep_float32(tmp_path, quantize):
    """bfloat16 has 8 bits: a step of 1e-5 on a weight of .01 would be rounded away."""
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    folder = save_local_model(tmp_path, hidden_size=64, intermediate_size=128)
    policy = load_policy(local_config(folder, lora=LORA, dtype="bfloat16", quantize=quantize), SIZES, TEXTS)
    policy.to_bfloat16()
    assert {value.dtype for value in policy.trainable().values()} == {torch.float32}
    frozen = {value.dtype for value in policy.model.parameters() if not value.requires_grad}
    assert frozen == ({torch.bfloat16} if quantize == "none" else {torch.bfloat16, torch.uint8})
    assert not policy.exact
    logits(policy).log_softmax(-1)[..., 0].sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in policy.trainable().values() if value.grad is not None)
    full = make_policy()
    assert full.exact
    full.to_bfloat16()
    assert {value.dtype for value in full.model.parameters()} == {torch.bfloat16}
    assert not full.exact


def test_saved_weights_come_back_and_those_of_another_model_are_refused():
    policy, other = make_policy(), make_policy()
    nudge(policy)
    other.load_state(policy.state(), "weights")
    assert_same(forward(other), forward(policy))
    wider = make_policy(ModelConfig(hidden=48, layers=2, heads=2, feed_forward=48, vocabulary=320))
    with pytest.raises(CheckpointError, match="another model"):
        wider.load_state(policy.state(), "weights")


def test_a_kernel_that_is_never_used_is_not_missed(tmp_path, caplog):
    load_policy(local_config(save_local_model(tmp_path), lora=LORA), SIZES, TEXTS)
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community")
    logger.error("what matters")
    assert [record.message for record in caplog.records if record.name == logger.name] == ["what matters"]


def test_a_folder_with_a_damaged_model_is_named(tmp_path):
    folder = save_local_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="does not load"):
        load_policy(local_config(folder), SIZES, TEXTS)


def test_nf4_trains_the_same_after_a_rollout_in_eval_mode(tmp_path):
    """On CPUs with avx512_bf16 bitsandbytes repacks weights in eval mode, which ruins every later gradient."""
    pytest.importorskip("bitsandbytes")
    folder = save_local_model(tmp_path, hidden_size=64, intermediate_size=128)
    config = local_config(folder, lora=LORA, quantize="nf4")
    gradients = []
    for rollout_first in (False, True):
        policy = load_policy(config, SIZES, TEXTS)
        nudge(policy)
        if rollout_first:
            policy.eval()
            forward(policy)
        policy.train()
        logits(policy).log_softmax(-1)[..., 0].sum().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in policy.trainable().values()]))
    assert float(gradients[0].norm()) > 0
    assert_same(gradients[1], gradients[0])
    quantized = [m for m in policy.model.modules() if type(m).__name__ == "Linear4bit"]
    assert quantized
    assert {(m.weight.quant_type, m.weight.quant_state.nested) for m in quantized} == {("nf4", True)}


def test_the_tiny_tokenizer_thinks_in_words():
    policy = make_policy(thinking=True)
    words, tokenizer = policy.words, policy.tokenizer
    ids = tokenizer("<think> red apple</think><a_2>", add_special_tokens=False)["input_ids"]
    assert (ids[0], ids[-2], ids[-1]) == (words.opening, words.closing, policy.first_ids[0] + 2)
    assert words.legal[ids[1:-2]].all()
    assert len(words.legal) == policy.first_ids[0]
    outside = [words.opening, words.closing, *tokenizer.all_special_ids]
    assert not words.legal[outside].any()
    assert int(words.legal.sum()) == policy.first_ids[0] - len(set(outside))
    assert words.line_break is None
    assert make_policy().words is None


def test_think_tokens_are_added_with_a_notice_or_refused(tmp_path):
    folder = save_local_model(tmp_path)
    with pytest.warns(UserWarning, match="<think> and </think> were added to the tokenizer"):
        policy = load_policy(local_config(folder), SIZES, TEXTS, thinking=True)
    plain = load_policy(local_config(folder), SIZES, TEXTS)
    assert (policy.words.opening, policy.words.closing) == (plain.first_ids[0], plain.first_ids[0] + 1)
    assert policy.first_ids[0] == plain.first_ids[0] + 2
    rows = policy.base.get_input_embeddings().weight.detach()
    added = rows[policy.words.opening : policy.first_ids[0]]
    assert 0.3 < float(added.std() / rows[: policy.words.opening].std()) < 3
    assert torch.isfinite(forward(policy)).all()
    with pytest.raises(ConfigError, match=r"has no <think> and </think>.*layout\.add_tokens is off"):
        load_policy(local_config(folder), SIZES, TEXTS, thinking=True, add_tokens=False)


@pytest.mark.parametrize("present", [THINK, THINK[1:]])
def test_think_tokens_that_are_there_stay(tmp_path, present):
    folder = save_local_model(tmp_path, vocab_size=400)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = len(tokenizer)
    tokenizer.add_tokens(list(present))
    tokenizer.save_pretrained(folder)
    if present == THINK:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            policy = load_policy(local_config(folder), SIZES, TEXTS, thinking=True, add_tokens=False)
    else:
        with pytest.warns(UserWarning, match="^<think> were added"):
            policy = load_policy(local_config(folder), SIZES, TEXTS, thinking=True)
        with pytest.raises(ConfigError, match="has no <think>, which"):
            load_policy(local_config(folder), SIZES, TEXTS, thinking=True, add_tokens=False)
    assert sorted([policy.words.opening, policy.words.closing]) == [before, before + 1]
    assert policy.words.closing == before + len(present) - 1
    assert policy.first_ids[0] == before + 2


def test_think_tokens_behind_the_sids_are_refused():
    tokenizer = train_tokenizer(TEXTS, 300)
    first_ids = add_sid_tokens(tokenizer, SIZES)
    tokenizer.add_tokens(list(THINK))
    with pytest.raises(ConfigError, match="behind the SID tokens"):
        think_words(tokenizer, first_ids[0])


@pytest.mark.parametrize("single", [True, False])
def test_a_line_break_ends_blocks_where_it_is_one_token(single):
    class Tokenizer:
        """Reads a line break as one token or two."""

        all_special_ids = (0, 1)

        def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
            return [THINK.index(token) + 2 for token in tokens]

        def __call__(self, read: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert (read, add_special_tokens) == ("\n", False)
            return {"input_ids": [7] if single else [5, 7]}

    words = think_words(Tokenizer(), 9)
    assert words.line_break == (7 if single else None)
    assert words.legal.tolist() == [False] * 4 + [True] * 5


NAMES = [["<x0>", "<x1>", "<x2>"], ["<y0>", "<y1>"]]


def with_tokens(folder, names, **changes):
    """A local model, to whose tokenizer some tokens were added."""
    save_local_model(folder, **changes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(names)
    tokenizer.save_pretrained(folder)
    return local_config(folder), len(tokenizer) - len(names)


def test_a_checkpoint_with_sid_tokens_is_read_as_it_is(tmp_path):
    from safetensors.torch import load_file

    config, first = with_tokens(tmp_path, [*NAMES[1], "<z>", *NAMES[0]], vocab_size=320)
    policy = load_checkpoint(config, NAMES)
    assert (policy.first_ids, policy.sizes, policy.sid_rows) == ((first + 3, first), (3, 2), (first, 6))
    kept = load_file(tmp_path / "model.safetensors")
    assert_same(policy.base.get_input_embeddings().weight, kept["model.embed_tokens.weight"], 0.0)


@pytest.mark.parametrize(
    ("names", "vocabulary", "says"),
    [
        (["<x0>", "<x1>", "<y0>", "<y1>"], 320, "has the SID token <x2> not at all: 3 tokens <x0> .. <x2> must stand"),
        (["<x0>", "<x2>", "<x1>", "<y0>", "<y1>"], 320, "<x1> in another place than behind the code before it"),
        ([*NAMES[0], *NAMES[1]], 32, "has embeddings for 32 tokens, its tokenizer .*: they do not belong together"),
    ],
)
def test_a_checkpoint_without_its_sid_tokens_in_a_row_is_refused(tmp_path, names, vocabulary, says):
    config, _ = with_tokens(tmp_path, names, vocab_size=vocabulary)
    with pytest.raises(ConfigError, match=says):
        load_checkpoint(config, NAMES)
