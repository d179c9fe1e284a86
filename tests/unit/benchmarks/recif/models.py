"""Small random checkpoints in the form of OneRec's: SID tokens in the tokenizer, a chat template with two modes."""

import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from genrl.benchmarks.recif.sids import CODES, sid_token

MARKS = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|sid_begin|>", "<|sid_end|>"]
LETTERS = [*string.ascii_letters, *string.digits, *" \n/_.,?:", *"是否喜欢什么？你推荐专家。"]
TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% if message.role == 'user' %}{{ '/think' if enable_thinking else '/no_think' }}{% endif -%}
<|im_end|>
{% endfor %}<|im_start|>assistant
{% if not enable_thinking %}<think>

</think>

{% endif %}"""


def make_tokenizer(levels="abc", without=(), template=TEMPLATE):
    """One token per letter, mark and code; all in the vocabulary, so that it loads at once."""
    letters = [each for each in dict.fromkeys([*MARKS, *LETTERS]) if each not in without]
    names = [sid_token(level, code) for level in range(len(levels)) for code in range(CODES)]
    vocabulary = {each: index for index, each in enumerate([*letters, *names])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\|?[a-z_/0-9]+\|?>|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        chat_template=template,
    )


def save_checkpoint(folder, positions=512, **tokenizer):
    """A folder as a downloaded checkpoint lies there; distributions are far from uniform."""
    made = make_tokenizer(**tokenizer)
    config = Qwen3Config(
        vocab_size=len(made) + 5,  # as real ones, padded
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        initializer_range=0.4,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
