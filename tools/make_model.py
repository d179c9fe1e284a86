"""Write causal language models with random weights: `python tools/make_model.py 1.7B 8B [--out FOLDER]`.

They lie in folders as downloaded ones do, train as slowly and take as much memory as real ones, and need no network.
Weights are bfloat16, the tokenizer is a small one of its own.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "tie_word_embeddings": False,
    },
}
"""Name -> options of Qwen3Config; those with a B are the shapes of the Qwen3 of that size."""


def main(words: list[str] | None = None) -> int:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("models"), metavar="FOLDER", help="where (models/)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where weights are drawn (cpu)")
    options = parser.parse_args(words)
    for shape in options.shapes:
        print(write(options.out / f"qwen3-{shape}", SHAPES[shape], torch.bfloat16, options.device), flush=True)
    return 0


def write(folder: Path, shape: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> Path:
    """A Qwen3 of a shape (options of Qwen3Config) with random weights and its tokenizer, in a folder."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    from genrl.policy.tiny import train_tokenizer

    tokenizer = train_tokenizer(("red apple pie", "green pear tart", "blue plum jam"), 300)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Qwen3Config(**shape, **special, max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
