"""ROUGE as an independent reckoning gives it."""

import itertools
from collections import Counter

import pytest
from tasks_fakes import make_model, tokenizer

from chinchilla.config.errors import DataError
from chinchilla.tasks.summarise import Summarise, rouge

REFERENCES = ["a tool that draws maps", "library for sound"]


def overlap(output: list, reference: list) -> float:
    """F1 of what two lists share, each as often as it stands there (Lin 2004)."""
    shared = sum((Counter(output) & Counter(reference)).values())
    return 2 * shared / (len(output) + len(reference)) if shared else 0.0


def pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(words))


@pytest.mark.parametrize("outputs", [REFERENCES, ["draws a map that is a tool", "sound"], ["", "other words"]])
def test_rouge_is_shared_words_and_pairs_of_words(outputs):
    found = rouge(outputs, REFERENCES)
    split = [(output.split(), reference.split()) for output, reference in zip(outputs, REFERENCES, strict=True)]
    assert found["rouge1"] == pytest.approx(100 * sum(overlap(*each) for each in split) / 2)
    assert found["rouge2"] == pytest.approx(100 * sum(overlap(pairs(a), pairs(b)) for a, b in split) / 2)


def test_the_longest_common_order_of_words_counts():
    # "a … that … tool"? The longest order both share is "draws" or "a that"/"a tool": two words of six and five.
    assert rouge(["draws a map that is a tool"], ["a tool that draws maps"])["rougeL"] == pytest.approx(100 * 4 / 12)


def test_an_untrained_model_is_scored_in_order():
    examples = [("the cat sat on the mat", "a cat"), ("the moon", "a moon")]
    score = Summarise(1).score(make_model(), tokenizer(), examples)
    assert set(score.metrics) == {"rouge1", "rouge2", "rougeL", "chrf"}
    assert [(sample.source, sample.reference) for sample in score.samples] == examples
    with pytest.raises(DataError, match="no text to score on"):
        Summarise().score(make_model(), tokenizer(), [])
