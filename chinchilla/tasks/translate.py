"""Translation: cross-entropy of the target, beam search, BLEU and chrF by sacrebleu."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from chinchilla.config.errors import DataError
from chinchilla.config.plan import TaskName
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.generate import translate
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Batch, Loss, Objective, Sample, Score

log = logging.getLogger("chinchilla")

BATCH_TOKENS = 2048
"""Source positions translated together when a whole set is."""


class Translate:
    """Text in one language to text in another."""

    name: TaskName = "translate"

    def __init__(self, beam_size: int = 4, length_penalty: float = 1.0) -> None:
        self.beam_size = beam_size
        self.length_penalty = length_penalty

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """See `token_objective`."""
        return token_objective(model, batch, objective)

    def score(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        examples: Sequence[tuple[str, ...]],
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> Score:
        """`bleu` (Papineni 2002; signature of sacrebleu's default, 13a) and `chrf` (Popović 2015) on pairs.

        Raises:
            DataError: there are no pairs.
        """
        if not examples:
            raise DataError("the test data has no pair to score on; name some in data.test")
        sources = [example[0] for example in examples]
        references = [example[1] for example in examples]
        outputs = self.answer(model, tokenizer, sources, on_progress=on_progress)
        metrics = {
            "bleu": BLEU().corpus_score(outputs, [references]).score,
            "chrf": CHRF().corpus_score(outputs, [references]).score,
        }
        triples = zip(sources, references, outputs, strict=True)
        return Score(metrics, tuple(Sample(*triple) for triple in triples))

    def question(self, example: tuple[str, ...]) -> str:
        """The source."""
        return example[0]

    def reply(self, model: Transformer, tokenizer: Tokenizer, question: str) -> str:
        """The translation of one text."""
        return self.answer(model, tokenizer, [question])[0]

    def serve(
        self, model: Transformer, tokenizer: Tokenizer, questions: Sequence[str], beam_size: int | None = None
    ) -> list[dict[str, Any]]:
        """`text` of each."""
        return [{"text": text} for text in self.answer(model, tokenizer, questions, beam_size)]

    def show(self, example: tuple[str, ...]) -> tuple[str, str | None]:
        """Source and translation."""
        return example[0], example[1]

    def answer(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        sources: Sequence[str],
        beam_size: int | None = None,
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> list[str]:
        """Translate texts, those of like length together; an empty text gives an empty text.

        Of a text longer than the model the beginning is translated, and how many there were is logged.
        """
        ids = _source_ids(model, tokenizer, sources)
        outputs = [""] * len(ids)
        order = [index for index in sorted(range(len(ids)), key=lambda index: len(ids[index])) if len(ids[index]) > 1]
        device = model.head.weight.device
        while order:
            batch = _take_batch(order, ids)
            longest = max(len(ids[index]) for index in batch)
            source = torch.full((len(batch), longest), model.shape.pad_id)
            for row, index in enumerate(batch):
                source[row, : len(ids[index])] = torch.tensor(ids[index])
            limits = [max_new(len(ids[index]), model.shape.max_len) for index in batch]
            mask = None if len(batch) == 1 else (source != model.shape.pad_id).to(device)
            found = translate(model, source.to(device), mask, limits, beam_size or self.beam_size, self.length_penalty)
            for index, answer in zip(batch, found, strict=True):
                outputs[index] = tokenizer.decode(answer)
            del order[: len(batch)]
            on_progress(1 - len(order) / len(ids))
        return outputs


def max_new(source_len: int, max_len: int) -> int:
    """The longest answer looked for: twice the source and ten, within the model."""
    return min(2 * source_len + 10, max_len - 1)


def _source_ids(model: Transformer, tokenizer: Tokenizer, sources: Sequence[str]) -> list[list[int]]:
    """The texts' ids with the end token, cut to what the model takes."""
    room = model.shape.max_len - 1
    ids = tokenizer.encode_batch(list(sources))
    if long := sum(len(row) > room for row in ids):
        log.warning("cut %d of %d texts to their first %d tokens, all that the model takes", long, len(ids), room)
    return [[*row[:room], model.shape.eos_id] for row in ids]


def _take_batch(order: Sequence[int], ids: Sequence[Sequence[int]]) -> list[int]:
    """The first of `order`, up to `BATCH_TOKENS` padded positions."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(ids[index]) > BATCH_TOKENS:
            break
        batch.append(index)
    return batch
