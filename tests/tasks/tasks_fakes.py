"""A small tokenizer and random models over its vocabulary."""

from functools import cache
from typing import Any

import torch

from chinchilla.config.shape import Shape
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.transformer import Transformer

TEXTS = (
    "the cat sat on the mat and looked at the moon",
    "a moon is a stone that circles a larger stone",
    "Die Katze saß auf der Matte und sah den Mond an",
    "whoever looks at the larger cat sees the moon",
)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, "bpe", 300)


def make_model(seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "vocab_size": tokenizer().vocab_size,
        "dim": 16,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 8,
        "ffn_dim": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "max_len": 64,
        "tied_embeddings": False,
    }
    return Transformer(Shape(**(common | changes))).eval()
