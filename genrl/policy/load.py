"""Build the policy that a configuration asks for: backbone, SID tokens, adapters, 4-bit weights."""

import logging
import sys
import warnings
from collections.abc import Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from genrl.config.schema import ModelConfig
from genrl.errors import ConfigError, UnsupportedError
from genrl.layouts.blocked import Words
from genrl.policy.base import Spec, TrainablePolicy
from genrl.policy.item import ItemPolicy, ItemSpec
from genrl.policy.model import Policy, PolicySpec
from genrl.policy.tiny import tiny_config, tiny_model, train_tokenizer
from genrl.sid.trie import Trie

THINK = ("<think>", "</think>")
"""What a think block stands between."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")


def load_policy(
    config: ModelConfig,
    sizes: tuple[int, ...],
    texts: tuple[str, ...],
    prefix: str = "",
    **options: Any,  # noqa: ANN401 (those of load_spec)
) -> Policy:
    """`load_spec` and `load_weights` in one."""
    return load_weights(config, load_spec(config, sizes, texts, prefix, **options))


def load_spec(
    config: ModelConfig,
    sizes: tuple[int, ...],
    texts: tuple[str, ...],
    prefix: str = "",
    *,
    thinking: bool = False,
    add_tokens: bool = True,
    saved: Path | None = None,
) -> PolicySpec:
    """Configuration and tokenizer of a language model, with the SID tokens of a catalogue.

    Args:
        config: the model section.
        sizes: codes per SID level.
        texts: item texts, which the tiny tokenizer is trained on.
        prefix: words that open every prompt.
        thinking: whether completions have think blocks.
        add_tokens: add their marks to a tokenizer that lacks them, with a notice, instead of refusing it.
        saved: folder of a tokenizer that was made for the tiny model before; None: it is trained on the texts.

    Raises:
        ConfigError: if the folder holds no model, or the width does not divide into heads.
        UnsupportedError: for a model that transforms its logits.
    """
    added = 0
    if config.name == "tiny":
        if config.hidden % config.heads:
            raise ConfigError(f"model.hidden={config.hidden} does not divide into model.heads={config.heads}.")
        tokenizer: Any = (
            train_tokenizer((text for text in texts if text), config.vocabulary, THINK if thinking else ())
            if saved is None
            else AutoTokenizer.from_pretrained(saved)
        )
    else:
        tokenizer = _local(AutoTokenizer, config)
        added = _add_think_tokens(tokenizer, config.name, add_tokens) if thinking else 0
    first_ids = add_sid_tokens(tokenizer, sizes)
    known = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    start = next((index for index in known if index is not None), None)
    if start is None:
        raise ConfigError(
            f"the tokenizer of model.name={config.name!r} has no bos, eos or pad token to open a sequence with."
        )
    prefix_ids = tuple(tokenizer(prefix, add_special_tokens=False)["input_ids"]) if prefix else ()
    words = think_words(tokenizer, first_ids[0]) if thinking else None
    own = tiny_config(config, len(tokenizer)) if config.name == "tiny" else _local(AutoConfig, config)
    return PolicySpec(own, tokenizer, first_ids, sizes, start, prefix_ids, words, added)


def policy_spec(config: ModelConfig, trie: Trie, texts: tuple[str, ...], prefix: str = "", **options: Any) -> Spec:  # noqa: ANN401
    """The policy that a model section names, but its weights; arguments are those of `load_spec`, `trie` the items."""
    if config.name == "item":
        return ItemSpec(config.item, trie)
    return load_spec(config, tuple(level.size for level in trie.levels), texts, prefix, **options)


def make_policy(config: ModelConfig, spec: Spec) -> TrainablePolicy:
    """The policy of a specification, with the weights that it begins with.

    Weights are drawn on the CPU, wherever the caller has new tensors made: the same from one seed on every device.
    """
    if isinstance(spec, PolicySpec):
        return load_weights(config, spec)
    assert isinstance(spec, ItemSpec)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ItemPolicy(spec)


def load_weights(config: ModelConfig, spec: PolicySpec) -> Policy:
    """Load or create the model that a specification describes, with rows for its SID tokens.

    What is read from a folder goes straight to where the caller has new tensors made. New weights are drawn on the CPU:
    the same from one seed on every device.

    Raises:
        ConfigError: if the folder's weights do not load.
        UnsupportedError: for 4-bit weights where bitsandbytes is not installed.
    """
    first, count = spec.first_ids[0] - spec.added, sum(spec.sizes) + spec.added
    # bitsandbytes, which peft loads where it is installed, misses a kernel that is never used: it has no backward pass
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    device = torch.get_default_device()
    with CPU:
        if config.name == "tiny":
            model: Any = tiny_model(spec.config, config.seed, config.dropout)
        else:
            model = _load_local(config, device)
            _grow(model, len(spec.tokenizer), first, count, config.seed)
        if config.lora.rank > 0:
            model = _add_lora(model, config, list(range(first, first + count)))
    return Policy(model, spec)


def load_outline(config: ModelConfig, spec: PolicySpec) -> Policy:
    """The policy that `load_weights` would give, shapes and types alone: on the meta device, nothing is read.

    4-bit weights have the shape and type of what they stand for.
    """
    first, count = spec.first_ids[0] - spec.added, sum(spec.sizes) + spec.added
    own = deepcopy(spec.config)
    with torch.device("meta"):
        if config.name == "tiny":
            model: Any = tiny_model(own, config.seed, config.dropout)
        else:
            options = {"dtype": DTYPES[config.dtype], "attn_implementation": "sdpa"}
            model = AutoModelForCausalLM.from_config(own, trust_remote_code=config.trust_remote_code, **options)
            _make_room(model, len(spec.tokenizer))
        if config.lora.rank > 0:
            model = _add_lora(model, config, list(range(first, first + count)))
    return Policy(model, spec)


def load_checkpoint(config: ModelConfig, names: Sequence[Sequence[str]]) -> Policy:
    """A causal language model that has SID tokens already, its weights and its tokenizer as they are.

    Args:
        config: the model section; its name is the folder.
        names: SID tokens of each level, code after code.

    Raises:
        ConfigError: if the folder holds no such model, or its tokenizer lacks a SID token or has them in another order.
    """
    tokenizer = _local(AutoTokenizer, config)
    vocabulary, first_ids = tokenizer.get_vocab(), []
    for level in names:
        first = vocabulary.get(level[0])
        wrong = next(
            (name for code, name in enumerate(level) if first is None or vocabulary.get(name) != first + code), ""
        )
        if wrong:
            what = "in another place than behind the code before it" if wrong in vocabulary else "not at all"
            raise ConfigError(
                f"the tokenizer of {config.name} has the SID token {wrong} {what}: {len(level):,} tokens {level[0]} .. "
                f"{level[-1]} must stand in a row. Give a checkpoint that was trained on these SIDs."
            )
        first_ids.append(first)
    model = _load_local(config, torch.get_default_device())
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ConfigError(
            f"the model in {config.name} has embeddings for {rows:,} tokens, its tokenizer {len(tokenizer):,}: they do "
            f"not belong together. Fetch the folder again."
        )
    known = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0
    start = next(index for index in known if index is not None)
    return Policy(model, PolicySpec(model.config, tokenizer, tuple(first_ids), tuple(map(len, names)), start, ()))


def think_words(tokenizer: Any, stop: int) -> Words:  # noqa: ANN401
    """The tokens of thinking: all below `stop`, the first SID token, but special ones.

    Raises:
        ConfigError: if the marks of a block stand behind the SID tokens.
    """
    opening, closing = tokenizer.convert_tokens_to_ids(list(THINK))
    if max(opening, closing) >= stop:
        raise ConfigError(
            f"the tokenizer has {THINK[0]} and {THINK[1]} behind the SID tokens: it was made for another layout. Use "
            f"the tokenizer of the base model."
        )
    legal = torch.ones(stop, dtype=torch.bool)
    legal[[index for index in {*tokenizer.all_special_ids, opening, closing} if index < stop]] = False
    breaks = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return Words(opening, closing, breaks[0] if len(breaks) == 1 and legal[breaks[0]] else None, legal)


def sid_token(level: int, code: int) -> str:
    """Text of a SID token.

    Example:
        >>> sid_token(0, 12)
        '<a_12>'
    """
    return f"<{LETTERS[level]}_{code}>"


def add_sid_tokens(tokenizer: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ANN401
    """Add the SID tokens of all levels, contiguous per level, and return the id of each level's code 0.

    Raises:
        ConfigError: if the tokenizer already holds some of them at other places (it was made for another SID table).
    """
    names = [sid_token(level, code) for level, size in enumerate(sizes) for code in range(size)]
    tokenizer.add_tokens(names)
    ids = tokenizer.convert_tokens_to_ids(names)
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise ConfigError(
            f"the tokenizer already has SID tokens that do not fit codebooks of {list(sizes)}: it belongs to another "
            f"SID table. Use the tokenizer of the base model, or the SID table it was made with."
        )
    starts = [0]
    for size in sizes[:-1]:
        starts.append(starts[-1] + size)
    return tuple(ids[0] + start for start in starts)


def _add_think_tokens(tokenizer: Any, name: str, allowed: bool) -> int:  # noqa: ANN401
    """Add `<think>` and `</think>` where the tokenizer lacks them, and return how many were added.

    Raises:
        ConfigError: if they are missing and must not be added.
    """
    missing = [mark for mark in THINK if mark not in tokenizer.get_vocab()]
    if not missing:
        return 0
    if not allowed:
        raise ConfigError(
            f"the tokenizer of model.name={name!r} has no {' and '.join(missing)}, which layout=blocked needs, and "
            f"layout.add_tokens is off. Switch it on, use layout=sid, or take a model that thinks."
        )
    warnings.warn(f"{' and '.join(missing)} were added to the tokenizer of {name}, untrained.", stacklevel=2)
    return int(tokenizer.add_tokens(missing))


def _local(kind: Any, config: ModelConfig, **options: Any) -> Any:  # noqa: ANN401 (classes of transformers)
    """What a class of transformers reads from the folder of a model."""
    folder = Path(config.name).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.name={config.name!r} is neither 'tiny' nor a folder with a Hugging Face model (no config.json "
            f"there). Give the path of a downloaded causal LM."
        )
    if not sys.stderr.isatty():  # a moving bar would fill a log
        disable_progress_bar()
    try:
        return kind.from_pretrained(folder, trust_remote_code=config.trust_remote_code, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(f"model.name={config.name!r} does not load: {str(error).splitlines()[0]}") from error


def _load_local(config: ModelConfig, device: torch.device = CPU) -> Any:  # noqa: ANN401
    """The model of a folder on a device: each tensor is read, and quantised, where it will stay."""
    options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "attn_implementation": "sdpa", "use_safetensors": True}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    if config.quantize == "none":
        return _local(AutoModelForCausalLM, config, **options)
    model = _local(AutoModelForCausalLM, config, **options, quantization_config=_nf4(config))
    keep_training_kernels(model)
    return model


def require_bitsandbytes(key: str, value: str, instead: str) -> None:
    """Refuse the value of an option that needs bitsandbytes where that is not installed.

    Raises:
        UnsupportedError: with the two ways out.
    """
    if find_spec("bitsandbytes") is None:
        raise UnsupportedError(f"{key}={value} needs bitsandbytes: pip install 'genrl[qlora]', or set {key}={instead}.")


def _nf4(config: ModelConfig) -> Any:  # noqa: ANN401
    from transformers import BitsAndBytesConfig

    require_bitsandbytes("model.quantize", "nf4", "none")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[config.dtype],
    )


def keep_training_kernels(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in eval mode on CPUs with avx512_bf16.

    The packed kernel has no backward pass, and RL alternates rollouts in eval mode with updates: after the first
    rollout every gradient would be wrong and saved weights corrupt.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _grow(model: Any, vocabulary: int, first: int, count: int, seed: int) -> None:  # noqa: ANN401
    """Make room for the SID tokens and give their rows seeded values of the size of the others."""
    _make_room(model, vocabulary)
    generator = torch.Generator().manual_seed(seed)
    tables = {model.get_input_embeddings().weight.data_ptr(): model.get_input_embeddings().weight}
    tables[model.get_output_embeddings().weight.data_ptr()] = model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in tables.values():
            old = weight[:first].cpu().float()
            noise = torch.randn(count, weight.shape[1], generator=generator)
            weight[first : first + count] = (old.mean(0) + noise * old.std(0)).to(weight)


def _make_room(model: Any, vocabulary: int) -> None:  # noqa: ANN401
    if model.get_input_embeddings().weight.shape[0] < vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)


def _add_lora(model: Any, config: ModelConfig, sid_ids: list[int]) -> Any:  # noqa: ANN401
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if config.quantize != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    tables = (model.get_input_embeddings(), model.get_output_embeddings())  # peft sees for itself if they are one
    names = [name for name, module in model.named_modules() if any(module is table for table in tables)]
    adapters = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        task_type="CAUSAL_LM",
        trainable_token_indices=dict.fromkeys(names, sid_ids),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft asks by the old name
        torch.manual_seed(config.seed)
        adapted = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    for value in adapted.parameters():
        if value.requires_grad:  # bfloat16 would round small steps away
            value.data = value.data.float()
    return adapted
