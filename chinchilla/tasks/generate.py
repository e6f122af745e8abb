"""Text generation: cross-entropy of the next token, bits per byte, sampling."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from chinchilla.config.errors import DataError
from chinchilla.config.plan import TaskName
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.generate import Sampling, complete
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Batch, Loss, Objective, Sample, Score

SAMPLES = 8
PROMPT_WORDS = 6
SAMPLE_TOKENS = 120
REPLY_TOKENS = 32


class Generate:
    """Continue a text."""

    name: TaskName = "generate"

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
        """`bits_per_byte` and `perplexity` (a token) on whole documents, each from its start; and some samples.

        A document longer than the model is cut in pieces that each start anew, which overstates the loss a little.

        Raises:
            DataError: there is no text to score on.
        """
        if not any(example[0] for example in examples):
            raise DataError("the test data has no text to score on; name some in data.test")
        nats, tokens, size_bytes = 0.0, 0, 0
        for index, example in enumerate(examples):
            ids = [*tokenizer.encode(example[0]), model.shape.eos_id]
            nats += document_nats(model, ids)
            tokens += len(ids)
            size_bytes += len(example[0].encode())
            on_progress((index + 1) / len(examples))
        metrics = {"bits_per_byte": bits_per_byte(nats, size_bytes), "perplexity": math.exp(nats / tokens)}
        prompts = [self.question(example) for example in examples[:SAMPLES]]
        samples = tuple(
            Sample(prompt, example[0], self.answer(model, tokenizer, prompt, Sampling(SAMPLE_TOKENS, seed=index)))
            for index, (prompt, example) in enumerate(zip(prompts, examples, strict=False))
        )
        return Score(metrics, samples)

    def question(self, example: tuple[str, ...]) -> str:
        """The first words."""
        return " ".join(example[0].split()[:PROMPT_WORDS])

    def reply(self, model: Transformer, tokenizer: Tokenizer, question: str) -> str:
        """A short greedy continuation, so that every model does alike."""
        return self.answer(model, tokenizer, question, Sampling(REPLY_TOKENS, temperature=0))

    def serve(
        self, model: Transformer, tokenizer: Tokenizer, questions: Sequence[str], sampling: Sampling
    ) -> list[dict[str, Any]]:
        """`text` that goes on from each."""
        return [{"text": self.answer(model, tokenizer, prompt, sampling)} for prompt in questions]

    def show(self, example: tuple[str, ...]) -> tuple[str, str | None]:
        """The first words, and the text."""
        return self.question(example), example[0]

    def answer(self, model: Transformer, tokenizer: Tokenizer, prompt: str, sampling: Sampling) -> str:
        """Continue `prompt`; the answer is what comes after it."""
        ids = prompt_ids(model, tokenizer, prompt, sampling.max_new)
        return tokenizer.decode(complete(model, ids, sampling, frozenset({model.shape.eos_id})))


def prompt_ids(model: Transformer, tokenizer: Tokenizer, prompt: str, max_new: int) -> list[int]:
    """The prompt's ids after the start token, its oldest part cut off where the answer would not fit.

    However long the answer may be, the prompt keeps half the model, and the answer gets what is left.
    """
    max_len = model.shape.max_len
    room = max(1, max_len // 2 - 1, max_len - max_new - 1)
    return [model.shape.bos_id, *tokenizer.encode(prompt)[-room:]]


@torch.inference_mode()
def document_nats(model: Transformer, ids: Sequence[int]) -> float:
    """Summed cross-entropy in nats of a document's tokens, end token included."""
    device = model.head.weight.device
    total = 0.0
    for start in range(0, len(ids), model.shape.max_len):
        labels = torch.tensor([list(ids[start : start + model.shape.max_len])], device=device)
        target = torch.cat([labels.new_full((1, 1), model.shape.bos_id), labels[:, :-1]], dim=1)
        _, plain = model.head.loss(model(target=target).hidden, labels)
        total += float(plain)
    return total


def bits_per_byte(nats: float, size_bytes: int) -> float:
    """Cross-entropy in bits for each byte of text, which does not depend on the tokenizer."""
    return nats / (math.log(2) * size_bytes)
