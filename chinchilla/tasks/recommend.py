"""Recommendation: the next item of a history, every item ranked (SASRec; Kang & McAuley 2018, arXiv 1808.09781)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.config.plan import TaskName
from chinchilla.data.interactions import history_ids
from chinchilla.data.items import FIRST_ITEM, Items
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Batch, Loss, Objective, Sample, Score

TOP = 10
BATCH = 64
"""Histories that go through the model together."""

SHOWN = 5
"""Items of a history, and of an answer, that are shown."""

History = Sequence[str]


class Recommend:
    """A history of items, the latest last, to the next one. An example is both, by name."""

    name: TaskName = "recommend"

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """Cross-entropy over all items; see `token_objective`."""
        return token_objective(model, batch, objective)

    def score(
        self,
        model: Transformer,
        codec: Items,
        examples: Sequence[tuple[History, str]],
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> Score:
        """`hit_rate_10`, `ndcg_10` and `mrr` of the item that came next, ranked among all that the user has not had.

        With one right item NDCG@10 is 1 / log2(1 + rank) down to rank 10. It is ranked also where the user has had it
        before, and behind all with the same score, so that a model that has no opinion gains nothing.

        Raises:
            DataError: there are no histories.
        """
        if not examples:
            raise DataError("there is no user to score on; each needs three items at least")
        ranks, samples = [], []
        for start in range(0, len(examples), BATCH):
            some = examples[start : start + BATCH]
            scores = next_scores(model, codec, [history for history, _ in some], seen=True)
            for (history, wanted), row in zip(some, scores, strict=True):
                (target,) = codec.ids([wanted])
                row[[each for each in codec.ids(history) if each != target]] = -math.inf
                ranks.append(int((~(row < row[target])).sum()))
                samples.append(Sample(_shown(history), wanted, _shown(self._best(codec, row, SHOWN)[0])))
            on_progress(min(1.0, (start + BATCH) / len(examples)))
        return Score(rank_metrics(ranks), tuple(samples))

    def question(self, example: tuple[History, str]) -> History:
        """The history."""
        return example[0]

    def reply(self, model: Transformer, codec: Items, question: History) -> str:
        """The likeliest next items."""
        return ", ".join(self._best(codec, next_scores(model, codec, [question])[0], SHOWN)[0])

    def serve(
        self, model: Transformer, codec: Items, questions: Sequence[History], k: int = TOP, exclude_seen: bool = True
    ) -> list[dict[str, Any]]:
        """`recommendations` of each: `k` items, and how likely each is to come next as its score."""
        found = []
        for row in next_scores(model, codec, questions, not exclude_seen):
            names, chances = self._best(codec, row, k)
            pairs = zip(names, chances, strict=True)
            found.append({"recommendations": [{"item": name, "score": chance} for name, chance in pairs]})
        return found

    def show(self, example: tuple[History, str]) -> tuple[str, str | None]:
        """The end of the history, and the item that came next."""
        return _shown(example[0]), example[1]

    def _best(self, codec: Items, row: NDArray[np.float64], top: int) -> tuple[list[str], list[float]]:
        order = [int(place) for place in np.argsort(-row, kind="stable")[:top] if np.isfinite(row[place])]
        return [codec.name(place) for place in order], np.exp(row[order]).tolist()


@torch.inference_mode()
def next_scores(
    model: Transformer, codec: Items, histories: Sequence[History], seen: bool = False
) -> NDArray[np.float64]:
    """Log-probability of each id to come next (histories, vocab_size); -inf for special ones and, unless `seen`, for
    those of the history."""
    device = model.head.weight.device
    found = np.empty((len(histories), codec.vocab_size))
    for place, ids in enumerate(map(codec.ids, histories)):
        target = torch.tensor([history_ids(ids, model.shape.max_len)], device=device)
        logits = model.logits(model(target=target).hidden[0, -1].float()).double()
        found[place] = logits.log_softmax(0).cpu().numpy()
        found[place, [] if seen else ids] = -math.inf
    found[:, :FIRST_ITEM] = -math.inf
    return found


def rank_metrics(ranks: Sequence[int], top: int = TOP) -> dict[str, float]:
    """Hit rate and NDCG within the first `top`, and mean reciprocal rank, of ranks that count from 1."""
    gains = [1 / math.log2(1 + rank) if rank <= top else 0.0 for rank in ranks]
    return {
        f"hit_rate_{top}": sum(rank <= top for rank in ranks) / len(ranks),
        f"ndcg_{top}": sum(gains) / len(ranks),
        "mrr": sum(1 / rank for rank in ranks) / len(ranks),
    }


def _shown(names: History) -> str:
    return ", ".join(names[-SHOWN:])
