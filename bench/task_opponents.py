"""The opponents of bench/tasks.py: what others would do with the same examples, threads and seconds.

Each takes its examples from the project's own split (`chinchilla.verbs.prepare`) and is scored by the functions that
score our models. An opponent's seconds begin before the data is read, as ours do, and hold its tuning, which looks at
the validation examples alone. No final model is trained on these, as ours is not. Networks are in task_networks.py.

`lead`: the first sentence. `tf_idf`: the best of three kinds of TF-IDF and three strengths of logistic regression; it
reads whole texts, however long. `popularity`: how often an item was taken in training; a tie counts for the item that
came next, for both sides. `boosting`: histogram gradient boosting as it comes, but that the validation rows say when to
stop; `tuned_boosting`: the best of as many of 36 further settings as there is time for. Their rows are as our codec has
them: numbers by their quantiles, which is next to nothing to trees, and codes of categories, those of at most 255 as
such.
"""

import itertools
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.chrf import CHRF
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from chinchilla.config.plan import Plan
from chinchilla.config.run import Run
from chinchilla.data.interactions import last_items
from chinchilla.tasks.classify import class_metrics
from chinchilla.tasks.recommend import rank_metrics
from chinchilla.tasks.summarise import rouge
from chinchilla.verbs.prepare import split_examples, test_examples

MOST_CATEGORIES = 255
"""Of a column, that scikit-learn's trees take."""

clock = time.perf_counter


@dataclass(frozen=True)
class Contest:
    """What an opponent is to do: a run's data and seed, our plan for it, and when its seconds began and end."""

    run: Run
    plan: Plan
    begun: float
    limit_s: float

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.limit_s - (clock() - self.begun)


class Outcome(NamedTuple):
    """Scores on the test examples, seconds of the training that made them, and parameters where there are such."""

    metrics: dict[str, float]
    train_s: float
    num_params: int | None


Opponent = Callable[[Contest], Outcome]


def lead(contest: Contest) -> Outcome:
    """The first sentence."""
    pairs = test_examples(contest.run)
    outputs = [re.split(r"(?<=[.!?])\s", source.strip(), maxsplit=1)[0] for source, *_ in pairs]
    return Outcome(summary_metrics(outputs, [target for _, target, *_ in pairs]), 0.0, None)


def summary_metrics(outputs: list[str], references: list[str]) -> dict[str, float]:
    """As `Summarise.score` has them."""
    return rouge(outputs, references) | {"chrf": CHRF().corpus_score(outputs, [references]).score}


def tf_idf(contest: Contest) -> Outcome:
    """TF-IDF of words or characters, and logistic regression."""
    split = split_examples(contest.run)
    texts, numbers = {}, {}
    for name in ("train", "valid", "test"):
        part = list(getattr(split, name))
        texts[name] = [example.text for example in part]
        numbers[name] = np.array([split.classes.number(example.label) for example in part])
    best, chosen = math.inf, None
    for analyzer, lengths in (("word", (1, 2)), ("char_wb", (2, 5)), ("char", (1, 3))):
        terms = TfidfVectorizer(analyzer=analyzer, ngram_range=lengths, min_df=2, sublinear_tf=True)
        counted = {"train": terms.fit_transform(texts["train"]), "valid": terms.transform(texts["valid"])}
        for strength in (1.0, 10.0, 100.0):
            if chosen is not None and contest.left_s <= 0:
                break
            begun = clock()
            model = LogisticRegression(C=strength, max_iter=1000).fit(counted["train"], numbers["train"])
            loss = log_loss(numbers["valid"], model.predict_proba(counted["valid"]), labels=model.classes_)
            if loss < best:
                best, chosen = loss, (terms, model, clock() - begun)
    assert chosen is not None
    terms, model, train_s = chosen
    chances = model.predict_proba(terms.transform(texts["test"]))
    return Outcome(class_metrics(numbers["test"], chances, split.classes), train_s, model.coef_.size)


def popularity(contest: Contest) -> Outcome:
    """The items taken most often, less those had."""
    split = split_examples(contest.run).items
    taken, ranks = split.popularity, []
    for history, wanted in last_items(split):
        counts = taken.copy()
        counts[history] = -1
        ranks.append(1 + int((counts > counts[wanted]).sum()))
    return Outcome(rank_metrics(ranks), 0.0, None)


SETTINGS = [
    {"learning_rate": rate, "max_leaf_nodes": leaves, "l2_regularization": l2, "min_samples_leaf": least}
    for rate, leaves, l2, least in itertools.product((0.03, 0.1), (7, 15, 31), (0.0, 1.0, 10.0), (5, 20))
]


def _boosting(contest: Contest, settings: list[dict[str, Any]]) -> Outcome:
    split = split_examples(contest.run)
    columns = split.columns
    few = [False] * len(columns.numbers) + [count <= MOST_CATEGORIES for count in columns.cardinalities]
    best, chosen = math.inf, None
    for each in settings:
        if chosen is not None and contest.left_s <= chosen[1]:
            break
        begun = clock()
        model = HistGradientBoostingClassifier(
            **each, max_iter=2000, early_stopping=True, categorical_features=few, random_state=contest.run.seed
        )
        model.fit(split.train.source, split.train.labels, X_val=split.valid.source, y_val=split.valid.labels)
        loss = log_loss(split.valid.labels, model.predict_proba(split.valid.source), labels=model.classes_)
        if loss < best:
            best, chosen = loss, (model, clock() - begun)
    assert chosen is not None
    model, train_s = chosen
    chances = model.predict_proba(split.test.source)
    return Outcome(class_metrics(split.test.labels, chances, split.classes), train_s, None)


def boosting(contest: Contest) -> Outcome:
    """As it comes."""
    return _boosting(contest, [{}])


def tuned_boosting(contest: Contest) -> Outcome:
    """The best of many settings, in random order, the default ones first."""
    return _boosting(contest, [{}, *random.Random(contest.run.seed).sample(SETTINGS, len(SETTINGS))])
