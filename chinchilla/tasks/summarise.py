"""Summaries: trained and searched for as translations are, measured by ROUGE."""

from collections.abc import Callable, Sequence

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from chinchilla.config.errors import DataError
from chinchilla.config.plan import TaskName
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.task import Sample, Score
from chinchilla.tasks.translate import Translate

ROUGES = ("rouge1", "rouge2", "rougeL")


class Summarise(Translate):
    """A text to a short one that says what it is about."""

    name: TaskName = "summarise"

    def score(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        examples: Sequence[tuple[str, ...]],
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> Score:
        """`rouge1`, `rouge2`, `rougeL` (Lin 2004; F1 in per cent, as rouge-score gives them, without stemming), `chrf`.

        Raises:
            DataError: there are no pairs.
        """
        if not examples:
            raise DataError("the test data has no text to score on; name some in data.test")
        sources = [example[0] for example in examples]
        references = [example[1] for example in examples]
        outputs = self.answer(model, tokenizer, sources, on_progress=on_progress)
        metrics = rouge(outputs, references) | {"chrf": CHRF().corpus_score(outputs, [references]).score}
        triples = zip(sources, references, outputs, strict=True)
        return Score(metrics, tuple(Sample(*triple) for triple in triples))


def rouge(outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 in per cent of each kind of ROUGE over all answers."""
    scorer = RougeScorer(list(ROUGES))
    scores = [scorer.score(reference, output) for reference, output in zip(references, outputs, strict=True)]
    return {name: 100 * sum(score[name].fmeasure for score in scores) / len(scores) for name in ROUGES}
