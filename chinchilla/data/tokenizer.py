"""Text to token ids and back: byte-level BPE or unigram by the `tokenizers` library, or a ready tokenizer.json."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from chinchilla.config.errors import UsageError
from chinchilla.data.codec import Asked

SPECIALS = ("<pad>", "<s>", "</s>", "<mask>")
SAMPLE_BYTES = 20_000_000
MAX_FILE_BYTES = 256 << 20
_REPLACEMENT = "\ufffd"


class Specials(NamedTuple):
    """The ids of the special tokens."""

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    mask_id: int = 3


class Tokenizer:
    """Text to token ids and back.

    `encode` adds no special tokens, and `decode` leaves them out. With an own tokenizer text that looks like a special
    token, such as "</s>", stays text, and `decode(encode(text)) == text` for every text.
    """

    def __init__(self, backend: Backend, specials: Specials, parse_specials: bool = False) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = not parse_specials
        self._backend = backend
        self.pad_id, self.bos_id, self.eos_id, self.mask_id = specials
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._marks = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(self._marks, key=len, reverse=True)
        self._mark = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: Literal["bpe", "unigram"] = "bpe",
        vocab_size: int = 8000,
        marks: Sequence[str] = (),
    ) -> "Tokenizer":
        """Train on an even sample of about 20 MB of `texts`; a small corpus may give less than `vocab_size`.

        `marks` become special tokens, with the ids from 4 on.

        Both kinds work on bytes, so nothing is unknown to them. BPE gives the same tokenizer for the same texts; the
        library's unigram training does not to the last digit, so keep its tokenizer.json.
        """
        bpe = kind == "bpe"
        trainer = (trainers.BpeTrainer if bpe else trainers.UnigramTrainer)(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=[*SPECIALS, *marks],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        backend = Backend(models.BPE() if bpe else models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(sample(texts, SAMPLE_BYTES), trainer)
        return cls(backend if bpe else _with_short_scores(backend), Specials())

    @classmethod
    def load(cls, path: Path, specials: Specials | None = None) -> "Tokenizer":
        """Read a tokenizer.json (see `from_json`).

        Raises:
            UsageError: a file that is missing, malformed, or without the special tokens.
        """
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise UsageError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, which no tokenizer is")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read as a tokenizer: {error}") from None
        return cls.from_json(text, specials, str(path))

    @classmethod
    def from_json(cls, text: str, specials: Specials | None = None, name: str = "tokenizer.json") -> "Tokenizer":
        """A tokenizer from the text of a tokenizer.json.

        Without `specials` it must have <pad>, <s>, </s> and <mask>. With them it may be any tokenizer (one that has no
        mask, say, names another id for it), and special tokens that are written in a text are read as such, as chat
        templates need.

        Raises:
            UsageError: malformed text, missing special tokens, or ids outside the vocabulary.
        """
        try:
            backend = Backend.from_str(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 (the library raises nothing narrower; its panics are no Exception)
            raise UsageError(
                f"{name}: not a tokenizer.json ({error}); give one as the tokenizers library saves it"
            ) from None
        if specials is not None:
            if not all(0 <= number < backend.get_vocab_size() for number in specials):
                raise UsageError(f"{name}: {specials} are not all among its {backend.get_vocab_size()} ids")
            return cls(backend, specials, parse_specials=True)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        missing = [token for token in SPECIALS if token not in vocabulary]
        if missing:
            raise UsageError(f"{name}: has no {', '.join(missing)}; add them as special tokens, or give their ids")
        return cls(backend, Specials(*(vocabulary[token] for token in SPECIALS)))

    def to_json(self) -> str:
        """The text of its tokenizer.json."""
        return self._backend.to_str()

    @property
    def tokenizer_json(self) -> str:
        """As a codec (`data.codec`): the text of its tokenizer.json."""
        return self.to_json()

    @property
    def settings(self) -> dict[str, Any]:
        """As a codec: the special tokens' ids where they are not those of a tokenizer trained here."""
        ids = (self.pad_id, self.bos_id, self.eos_id, self.mask_id)
        return {} if ids == Specials() else {"specials": list(ids)}

    @classmethod
    def open(cls, settings: Mapping[str, Any], tokenizer_json: str | None, where: str) -> "Tokenizer":
        """The tokenizer of a model folder of ours, given what it holds under `codec`.

        Raises:
            UsageError: there is none, or it is malformed.
        """
        if tokenizer_json is None:
            raise UsageError(f"{where}: tokenizer.json is missing, so that texts cannot be turned into tokens")
        match settings.get("specials"):
            case [int(pad), int(bos), int(eos), int(mask)]:
                return cls.from_json(tokenizer_json, Specials(pad, bos, eos, mask), f"{where}/tokenizer.json")
        return cls.from_json(tokenizer_json, None, f"{where}/tokenizer.json")

    @property
    def form(self) -> dict[str, Any]:
        """As a codec: a text needs no form."""
        return {}

    def read_question(self, text: str) -> Asked:
        """As a codec: the text, and its tokens with the end or start token."""
        return Asked(text, len(self.encode(text)) + 1)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_marks(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are read as such, as a template's own marks are."""
        pieces = self._mark.split(text)
        ids = self.encode(pieces[0])
        for mark, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            ids += [self._marks[mark], *self.encode(piece)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens; a broken character comes out as U+FFFD."""
        return self._backend.decode(ids, skip_special_tokens=True)

    def stream(self) -> "TextStream":
        """A decoder for one answer that comes token by token."""
        return TextStream(self)


class TextStream:
    """Decodes token by token: what `push` and `finish` give, joined, is `decode` of all the ids.

    A character that spans several tokens is held back until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Take the next token and give the text that is now certain ("" while a character is unfinished)."""
        self._held.append(token)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._shown, self._held = self._held, []
        return text

    def finish(self) -> str:
        """The rest, when no token follows."""
        text = self._new_text()
        self._shown, self._held = [], []
        return text

    def _new_text(self) -> str:
        # Decoded together with the tokens before, since some tokenizers drop a space at the start of a text.
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._held)[len(before) :]


def _with_short_scores(unigram: Backend) -> Backend:
    """The same tokenizer with scores of six decimals: the library doesn't read back longer ones as it wrote them."""
    content = json.loads(unigram.to_str())
    content["model"]["vocab"] = [[piece, round(score, 6)] for piece, score in content["model"]["vocab"]]
    return Backend.from_str(json.dumps(content))


def sample(texts: Iterable[str], size_bytes: int) -> Iterator[str]:
    """All the texts, or an even sample of them of about `size_bytes` (between half and all of it), in order."""
    kept: list[str] = []
    held_bytes, every = 0, 1
    for number, text in enumerate(texts):
        if number % every:
            continue
        kept.append(text)
        held_bytes += len(text.encode())
        while held_bytes > size_bytes and len(kept) > 1:
            kept, every = kept[::2], every * 2
            held_bytes = sum(len(text.encode()) for text in kept)
    return iter(kept)
