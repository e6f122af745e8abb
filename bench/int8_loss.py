"""What int8 loses of a translation run, and where: teacher-forced on the test data, and BLEU of its translations.

    python bench/int8_loss.py runs/translate-1 --sentences 320    writes bench/results/int8_loss.csv
    python bench/int8_loss.py runs/translate-1 --sentences 320 --bleu

The first takes a minute of CPU time, the second, which translates all test data three times, four. The first so many
sentences (all by default), those of like length together, 32 a batch. `kl` is the divergence of a variant's next tokens
from fp32's, `more` the reference's cross-entropy less fp32's, with the 95 % interval of a paired bootstrap over
sentences; all in thousandths of a nat a token. BLEU's interval is of its difference to fp32, by the same bootstrap.
"""

import argparse
import copy
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor, nn

from chinchilla.models import quantized
from chinchilla.models.head import TokenHead
from chinchilla.models.quantized import matrices, replace_, to_levels, to_rows
from chinchilla.models.transformer import Transformer
from chinchilla.verbs.exam import RunExam, sit_exam

KINDS = ("attention.qkv", "attention.out", "cross.query", "cross.kv", "cross.out", "mlp.up", "mlp.down", "head")
BATCH, SAMPLES = 32, 1000
Row = dict[str, Any]
Counts = np.ndarray[Any, np.dtype[np.int64]]


class Batch(NamedTuple):
    """`source`, `target`, `labels` (sentences, length); labels are -100 at padding."""

    source: Tensor
    target: Tensor
    labels: Tensor


def batches(exam: RunExam, model: Transformer, most: int | None) -> list[Batch]:
    """The first `most` test pairs, those that fit the model, of like length together."""
    shape, encode = model.shape, exam.codec.encode_batch
    sides = [encode([example[side] for example in exam.examples[:most]]) for side in (0, 1)]
    pairs = [pair for pair in zip(*sides, strict=True) if pair[0] and max(map(len, pair)) < shape.max_len]
    pairs.sort(key=lambda pair: len(pair[0]))
    groups = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    return [
        Batch(
            padded([[*source, shape.eos_id] for source, _ in group], shape.pad_id),
            padded([[shape.bos_id, *target] for _, target in group], shape.pad_id),
            padded([[*target, shape.eos_id] for _, target in group], -100),
        )
        for group in groups
    ]


def padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    """One tensor (rows, longest)."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filling)


def chances(model: Transformer, batch: Batch) -> Tensor:
    """Log-probabilities (labelled tokens, vocab_size)."""
    real = batch.source != model.shape.pad_id
    hidden = model.decode(batch.target, model.encode(batch.source, real), real)
    return F.log_softmax(model.logits(hidden[batch.labels >= 0]), dim=1)


def judge(model: Transformer, variant: Transformer, data: Sequence[Batch]) -> Row:
    """How far the variant is from the model."""
    divergence, agreed, more, lengths = 0.0, 0, [], []
    for batch in data:
        wanted, found = chances(model, batch), chances(variant, batch)
        divergence += float((wanted.exp() * (wanted - found)).sum())
        agreed += int((wanted.argmax(1) == found.argmax(1)).sum())
        each = (wanted - found).gather(1, batch.labels[batch.labels >= 0][:, None])[:, 0]
        sizes = (batch.labels >= 0).sum(1).tolist()
        more += [float(part.sum()) for part in each.split(sizes)]
        lengths += sizes
    sums, tokens = np.array(more), np.array(lengths)
    low, high = interval(lambda rows: float(sums[rows].sum() / tokens[rows].sum()), len(sums))
    total = int(tokens.sum())
    scaled = {"kl": divergence / total, "more": sums.sum() / total, "more_low": low, "more_high": high}
    return {"tokens": total, **{k: round(1e3 * v, 3) for k, v in scaled.items()}, "same_best": round(agreed / total, 4)}


def interval(statistic: Callable[[np.ndarray[Any, Any]], float], count: int) -> tuple[float, float]:
    """The middle 95 % of a statistic of rows drawn with replacement."""
    random = np.random.default_rng(0)
    drawn = [statistic(random.integers(0, count, count)) for _ in range(SAMPLES)]
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def int8(model: Transformer) -> Transformer:
    """As `chinchilla compress` makes it."""
    twin = copy.deepcopy(model)
    replace_(twin, matrices(twin))
    return twin


def rounded(model: Transformer, kinds: Sequence[str], weights: bool) -> Transformer:
    """In fp32, but with the weights, or the inputs by one scale a call, of some kinds of layer rounded."""
    twin = copy.deepcopy(model)
    for name in matrices(twin):
        module = twin.get_submodule(name)
        if weights and isinstance(module, nn.Linear | nn.Embedding | TokenHead):
            rows = to_rows(module.weight)
            module.weight.copy_(rows.weight * rows.scale[:, None])
        elif not weights and name.endswith(tuple(kinds)):
            module.register_forward_pre_hook(lambda _, given: torch.mul(*to_levels(given[0])))
    return twin


def variants(model: Transformer) -> Iterator[tuple[str, Transformer]]:
    """Names and models; each is to be used before the next is asked for."""
    yield "weights", rounded(model, (), weights=True)
    yield "inputs, a scale a call", rounded(model, KINDS, weights=False)
    for kind in KINDS:
        yield f"inputs of {kind}, a scale a call", rounded(model, [kind], weights=False)
    few, quantized.FEW_ROWS = quantized.FEW_ROWS, 10**9
    yield "int8, a scale a call", int8(model)
    quantized.FEW_ROWS = few
    yield "int8", int8(model)


def translations(exam: RunExam, model: Transformer) -> list[str]:
    """Of the whole test set."""
    return exam.task.answer(model, exam.codec, exam.questions)


def counts(texts: Sequence[str], references: Sequence[str]) -> Counts:
    """What BLEU is made of, (sentences, 10): n-grams that match, n-grams, and both lengths."""
    metric = BLEU(effective_order=True)
    each = [metric.sentence_score(text, [wanted]) for text, wanted in zip(texts, references, strict=True)]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in each])


def bleu(sentences: Counts) -> float:
    """Corpus BLEU."""
    sums = [int(each) for each in sentences.sum(0)]
    return BLEU.compute_bleu(sums[:4], sums[4:8], sums[8], sums[9]).score


def against(wanted: Counts, found: Counts) -> Row:
    """BLEU of `found`, and how much more it is than that of `wanted`."""
    low, high = interval(lambda rows: bleu(found[rows]) - bleu(wanted[rows]), len(found))
    figures = {"bleu": bleu(found), "bleu_more": bleu(found) - bleu(wanted), "bleu_low": low, "bleu_high": high}
    return {key: round(value, 3) for key, value in figures.items()}


def run(path: Path, most: int | None, with_bleu: bool) -> Iterator[Row]:
    """All rows of one run, each printed as it comes."""
    exam, model = sit_exam(path)
    torch.set_num_threads(1)
    data = batches(exam, model, most)
    references = [example[1] for example in exam.examples]
    wanted = counts(translations(exam, model), references) if with_bleu else None
    for name, variant in variants(model):
        row = {"run": path.name, "what": name} | judge(model, variant, data)
        if wanted is not None and name.startswith("int8"):
            row |= against(wanted, counts(translations(exam, variant), references))
        print(*row.values(), flush=True)
        yield row


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--sentences", type=int, help="of the test data, to judge on; all by default")
    parser.add_argument("--bleu", action="store_true", help="of the whole test data")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "int8_loss.csv")
    arguments = parser.parse_args()
    with torch.inference_mode():
        rows = [row for path in arguments.runs for row in run(path, arguments.sentences, arguments.bleu)]
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[-1]), restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
