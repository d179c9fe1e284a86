"""The chat model of tools/make_traces.py: its prompts, how it writes and chooses, and how its answers are read."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from genrl.errors import ConfigError
from genrl.files import key_of
from genrl.prompts.traces import TAGS

LETTERS = string.ascii_uppercase
STEP = re.compile(r"^\W*(?:step\s*)?(\d+)\s*[.:)]\W*(.*)", re.IGNORECASE)
HISTORY = "A customer bought these products, oldest first:\n{history}\n\n"
WRITE = (
    HISTORY + "The next product they bought is: {target}\n\n"
    "Explain in exactly {levels} steps how the history leads to it: the first step finds the broad kind of product, "
    "each further step narrows it down, the last one says what sets it apart. Point to products of the history. Reason "
    "as if you did not know the next product, and never write its name.\n"
    "Write one or two short sentences per step, each step on a line of its own that begins with its number, and "
    "nothing else.\n"
)
CHECK = (
    HISTORY + "A thought about the next one: {thought}\n\n"
    "Which of these products did they buy next?\n{options}\n\nAnswer with the letter alone.\n"
)


def listed(titles: Iterable[str], marks: Iterable[str] = repeat("-")) -> str:
    """Titles as prompts show them, a line each behind its mark."""
    return "\n".join(f"{mark} {title}" for mark, title in zip(marks, titles, strict=False))


def read_steps(answer: str) -> tuple[str, ...]:
    r"""Numbered steps of an answer; none if their numbers are not 1, 2, 3 ... or a step says nothing.

    What stands before the first step, behind a blank line after a step, and in a model's own thinking is left out.

    Example:
        >>> read_steps("Sure!\n1. They like tea.\n**Step 2:** A pot\nof clay.\n\nI hope this helps.")
        ('They like tea.', 'A pot of clay.')
        >>> read_steps("1. They like tea.\n3. A pot.")
        ()
    """
    steps: list[list[str]] = []
    numbers: list[int] = []
    inside = False
    for line in TAGS.sub("", answer.rpartition("</think>")[2]).splitlines():
        if found := STEP.match(line):
            numbers.append(int(found[1]))
            steps.append(found[2].split())
        elif inside:
            steps[-1] += line.split()
        inside = bool(steps) and bool(line.strip())
    whole = numbers == list(range(1, len(steps) + 1)) and all(steps)
    return tuple(" ".join(step) for step in steps) if whole else ()


@dataclass(frozen=True)
class Teacher:
    """A causal LM that answers prompts in batches; with a chat template if its tokenizer has one."""

    name: str
    model: Any
    tokenizer: Any
    max_new_tokens: int
    temperature: float
    """Of sampling; 0 takes the likeliest token."""

    @classmethod
    def load(cls, folder: str, device: str, max_new_tokens: int, temperature: float) -> Teacher:
        """Load a model from a folder, in bfloat16 on a GPU; code that lies there is not run.

        Raises:
            ConfigError: if there is no model that loads.
        """
        if not (Path(folder) / "config.json").is_file():
            raise ConfigError(
                f"--model {folder}: no folder with a Hugging Face model (no config.json there). Give the path of a "
                f"downloaded causal LM, best a chat model."
            )
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ConfigError(f"--model {folder} does not load: {str(error).splitlines()[0]}") from error
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise ConfigError(f"--model {folder}: the tokenizer has neither a pad nor an eos token to fill with.")
            tokenizer.pad_token = tokenizer.eos_token
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        model.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, **sampling
        )
        return cls(Path(folder).resolve().name, model.to(device).eval(), tokenizer, max_new_tokens, temperature)

    def settings(self) -> dict[str, Any]:
        """What its answers depend on; of the weights names, shapes and first values."""
        named = self.model.named_parameters()
        weights = [(name, list(value.shape), value.detach().flatten()[:4].float().tolist()) for name, value in named]
        return {
            "model": self.name,
            "weights": key_of(weights),  # which tells models of one name apart
            "prompts": key_of(WRITE, CHECK),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }

    @torch.no_grad()
    def write(self, prompts: Sequence[str]) -> list[tuple[str, bool]]:
        """An answer to each prompt, and whether it came to its end within the tokens that it may have.

        Raises:
            ConfigError: if a prompt and its answer are longer than the model reads.
        """
        tokens = self._encode(prompts, self.max_new_tokens)
        found = self.model.generate(**tokens)[:, tokens["input_ids"].shape[1] :]
        eos = self.model.generation_config.eos_token_id
        ends = torch.isin(found, torch.tensor([] if eos is None else eos, device=found.device)).any(1)
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return list(zip(texts, ends.tolist(), strict=True))

    @torch.no_grad()
    def choose(self, prompts: Sequence[str], options: Sequence[int]) -> list[int]:
        """The likeliest of the first `options` letters as the next token of each prompt.

        Raises:
            ConfigError: if letters are not told apart by one token, or a prompt is longer than the model reads.
        """
        letters = LETTERS[: max(options)]
        found = [self.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in letters]
        ids = [tokens[-1] for tokens in found if tokens]
        if len(set(ids)) < len(letters):
            raise ConfigError(f"--check-answer: the tokenizer of {self.name} has no token for each of {letters}.")
        tokens = self._encode(prompts, 1)
        places = tokens["attention_mask"].cumsum(1).sub(1).clamp(min=0)
        scores: Tensor = self.model(**tokens, position_ids=places, logits_to_keep=1).logits[:, -1, ids].float()
        inside = torch.arange(len(ids), device=scores.device) < torch.tensor(options, device=scores.device)[:, None]
        return scores.masked_fill(~inside, -torch.inf).argmax(1).tolist()

    def _encode(self, prompts: Sequence[str], further: int) -> dict[str, Tensor]:
        chat = self.tokenizer.chat_template is not None
        texts = list(prompts)
        if chat:
            messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
            options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
            texts = self.tokenizer.apply_chat_template(messages, **options)
        tokens = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not chat)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        length = tokens["input_ids"].shape[1] + further
        if limit is not None and length > limit:
            raise ConfigError(
                f"a prompt and its answer have {length} tokens, but {self.name} reads {limit}. Lower data.max_history "
                f"or --max-new-tokens."
            )
        return {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
