"""GGUF files that announce what cannot be, or whose settings do not fit together, are refused by name and at once."""

import random
import struct
import time
from pathlib import Path

import gguf
import pytest

from chinchilla.config.errors import ChinchillaError, FaultError, UsageError
from chinchilla.models.gguf_header import MAX_VALUES, check_header
from chinchilla.models.hub import read_model


def refused(path: Path, message: str, kind: type[ChinchillaError] = FaultError) -> None:
    began = time.perf_counter()
    with pytest.raises(kind, match=message):
        read_model(path)
    assert time.perf_counter() - began < 5


STRING, UINT32, ARRAY, UINT8 = 8, 4, 9, 0


def text(value: bytes | str, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def field(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + data


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_file(fields: list[bytes], tensors: list[bytes], data: bytes = b"", counts: tuple[int, int] | None = None):
    number = counts or (len(tensors), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", 3, *number) + b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


GGUF_BOMBS = {
    "2^62 tensors": (gguf_file([], [], counts=(1 << 62, 0)), "are announced"),
    "2^62 settings": (gguf_file([], [], counts=(0, 1 << 62)), "are announced"),
    "settings that are not there": (gguf_file([], [], counts=(0, 1000)), "are said to follow"),
    "a name of 2^60 bytes": (gguf_file([text("a", 1 << 60)], []), "a name of"),
    "a name past the end": (gguf_file([text("a", 60_000)], []), "are said to follow"),
    "a text of 2^60 bytes": (gguf_file([field("a", STRING, text("b", 1 << 60))], []), "are said to follow"),
    "an array of 2^60 bytes": (gguf_file([field("a", ARRAY, array(UINT8, 1 << 60, b""))], []), "arrays of more than"),
    "an array past the end": (gguf_file([field("a", ARRAY, array(UINT8, 10**6, b""))], []), "are said to follow"),
    "an array of 2^60 texts": (gguf_file([field("a", ARRAY, array(STRING, 1 << 60, b""))], []), "arrays of more than"),
    "texts past the end": (gguf_file([field("a", ARRAY, array(STRING, 10**6, b""))], []), "are said to follow"),
    "arrays in arrays": (
        gguf_file([field("a", ARRAY, array(ARRAY, 1, array(ARRAY, 1, b"")))], []),
        "an array of arrays",
    ),
    "arrays of too many values": (
        gguf_file([field("a", ARRAY, array(UINT8, MAX_VALUES + 1, bytes(MAX_VALUES + 1)))], []),
        "arrays of more than",
    ),
    "an unknown kind": (gguf_file([field("a", 77, b"")], []), "unknown kind 77"),
    "an alignment of 0": (gguf_file([field("general.alignment", UINT32, bytes(4))], []), "an alignment of 0"),
    "an alignment of 3": (gguf_file([field("general.alignment", UINT32, b"\3\0\0\0")], []), "an alignment of 3"),
    "2^32 - 1 dimensions": (
        gguf_file([], [text("t") + struct.pack("<I", 2**32 - 1)]),
        "4,294,967,295 dimensions",
    ),
    "sizes that overflow": (gguf_file([], [tensor("t", [1 << 32, 1 << 32], 0, 0)], bytes(64)), "past the end"),
    "an offset past the end": (gguf_file([], [tensor("t", [4], 0, 1 << 50)], bytes(64)), "past the end"),
    "a tensor past the end": (gguf_file([], [tensor("t", [17], 0, 0)], bytes(64)), "ends 4 bytes past the end"),
    "an unknown number format": (gguf_file([], [tensor("t", [4], 999, 0)], bytes(64)), "unknown number format, 999"),
    "tensors on each other": (
        gguf_file([], [tensor(f"t{n}", [16], 0, 0) for n in range(50)], bytes(64)),
        "lies on another one",
    ),
    "a name that is no text": (gguf_file([text(b"\xff\xfe")], []), "codec can't decode"),
    "another byte order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "another byte order"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "no GGUF": (b"PK\3\4" + bytes(100), "does not begin with GGUF"),
}


@pytest.mark.parametrize("bomb", GGUF_BOMBS)
def test_gguf_bombs_are_named_at_once(tmp_path: Path, bomb: str) -> None:
    content, message = GGUF_BOMBS[bomb]
    (tmp_path / "m.gguf").write_bytes(content)
    refused(tmp_path / "m.gguf", f"m\\.gguf: not a whole GGUF file: .*{message}")


def test_a_gguf_that_holds_together_passes_the_walk(tmp_path: Path) -> None:
    fields = [field("a", ARRAY, array(STRING, 2, text("x") + text("y"))), field("b", UINT32, bytes(4))]
    content = gguf_file(fields, [tensor("t", [4, 4], 0, 0), tensor("u", [4], 0, 64)], bytes(80))
    (tmp_path / "m.gguf").write_bytes(content)
    check_header(tmp_path / "m.gguf", gguf.GGML_QUANT_SIZES)
    refused(tmp_path / "m.gguf", "general.architecture is missing", UsageError)


def wild_settings(**changes: bytes) -> bytes:
    """A GGUF of a Llama's settings, of which some are of another kind than they should be."""
    number = struct.pack("<I", 4)
    names = ["embedding_length", "attention.head_count", "feed_forward_length", "block_count", "context_length"]
    known = {f"llama.{name}": field(f"llama.{name}", UINT32, number) for name in names}
    known["general.architecture"] = field("general.architecture", STRING, text("llama"))
    known["tokenizer.ggml.eos_token_id"] = field("tokenizer.ggml.eos_token_id", UINT32, bytes(4))
    known["tokenizer.ggml.bos_token_id"] = field("tokenizer.ggml.bos_token_id", UINT32, bytes(4))
    eps = "llama.attention.layer_norm_rms_epsilon"
    known[eps] = field(eps, 6, struct.pack("<f", 1e-5))
    for name, kind, data in (
        ("model", STRING, text("gpt2")),
        ("tokens", ARRAY, array(STRING, 2, text("a") + text("b"))),
        ("merges", ARRAY, array(STRING, 1, text("a b"))),
    ):
        known[f"tokenizer.ggml.{name}"] = field(f"tokenizer.ggml.{name}", kind, data)
    known |= {name.replace("__", "."): value for name, value in changes.items()}
    return gguf_file(list(known.values()), [])


@pytest.mark.parametrize(
    "name",
    [
        "general.architecture",
        "llama.embedding_length",
        "llama.attention.head_count",
        "llama.block_count",
        "llama.context_length",
        "llama.rope.freq_base",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.pre",
    ],
)
def test_gguf_settings_of_the_wrong_kind_are_named(tmp_path: Path, name: str) -> None:
    wild = [
        field(name, STRING, text("many")),
        field(name, UINT32, bytes(4)),
        field(name, UINT32, b"\xff" * 4),
        field(name, ARRAY, array(UINT8, 3, b"abc")),
        field(name, ARRAY, array(STRING, 1, text("a"))),
        field(name, 12, struct.pack("<d", float("nan"))),
    ]
    for value in wild:
        (tmp_path / "m.gguf").write_bytes(wild_settings(**{name.replace(".", "__"): value}))
        began = time.perf_counter()
        with pytest.raises(ChinchillaError, match=r"m\.gguf"):
            read_model(tmp_path / "m.gguf")
        assert time.perf_counter() - began < 5


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_to_a_gguf_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    draw, good = random.Random(seed), wild_settings()
    for _ in range(200):
        data = bytearray(good)
        for _ in range(draw.choice([1, 2, 8])):
            data[draw.randrange(4, len(data))] = draw.randrange(256)
        (tmp_path / "m.gguf").write_bytes(data)
        with pytest.raises(ChinchillaError, match=r"m\.gguf"):
            read_model(tmp_path / "m.gguf")
