"""Networks as opponents in bench/tasks.py: BART and a plain CNN, from random weights in the seconds of our run.

`bart`: `transformers`' BART of about as many parameters as ours, through our tokenizer, with its usual recipe: AdamW,
warm-up over a tenth of the time and linear decay, dropout and label smoothing 0.1, batches of pairs of like length, 4
beams. `cnn`: three stages of two 3 x 3 convolutions with batch norm, as wide as makes about our FLOPs an image, on the
same augmented batches. Both take the faster precision and the best of three rates, each tried for a twentieth of the
time, and keep the weights that did best on the validation examples. Rates follow the clock, so that a training ends
where its seconds end. Neither is compiled.
"""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from task_opponents import Contest, Outcome, clock, summary_metrics
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, BartForConditionalGeneration

from chinchilla.data.picture_classes import PictureClasses
from chinchilla.data.stream import stream
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.tasks.classify import class_metrics
from chinchilla.tasks.translate import max_new
from chinchilla.verbs.prepare import prepare

RATES = {"bart": (5e-4, 1e-3, 2e-3), "cnn": (1e-3, 3e-3, 1e-2)}
TRIAL_SHARE = 0.05
LOOKS = 10
"""Validations of a training."""

BATCH_TOKENS, BEAMS, SMOOTHING = 4096, 4, 0.1
PAD, BOS, EOS = 0, 1, 2
IMAGES, WIDTHS = 128, (8, 12, 16, 24, 32, 48, 64, 96)


@dataclass
class Learner:
    """A torch model and how it learns: `loss` gives the summed loss of a batch and its number of labels."""

    model: nn.Module
    loss: Callable[[nn.Module, Any, float], tuple[Tensor, int]]
    feed: Iterator[Any]
    valid: Callable[[], Iterable[Any]]
    precision: str

    def train(self, rate: float, limit_s: float, looks: int) -> float:
        """Train for so long, validations counted; keep the weights of the lowest validation loss, and give that."""
        optimizer = torch.optim.AdamW(self.model.parameters(), rate, weight_decay=0.01)
        begun, look_s, done = clock(), 0.0, 0
        best, weights = math.inf, copy.deepcopy(self.model.state_dict())
        while done < looks:
            share = (clock() - begun) / max(1e-9, limit_s - look_s)
            if share < (done + 1) / looks:
                self._step(optimizer, rate * min(10 * share, (1 - share) / 0.9) + 1e-7)
                continue
            done, looked = done + 1, clock()
            if (found := self._valid_loss()) < best:
                best, weights = found, copy.deepcopy(self.model.state_dict())
            look_s = clock() - looked
        self.model.load_state_dict(weights)
        return best

    def step_s(self) -> float:
        """Seconds of a step, once warm; the weights stay as they are."""
        optimizer, times = torch.optim.AdamW(self.model.parameters(), 0.0), []
        for _ in range(4):
            begun = clock()
            self._step(optimizer, 0.0)
            times.append(clock() - begun)
        return min(times)

    def _step(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        total, labels = self._loss(next(self.feed), SMOOTHING)
        (total / max(1, labels)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def _valid_loss(self) -> float:
        self.model.eval()
        found = [self._loss(batch, 0.0) for batch in self.valid()]
        self.model.train()
        return sum(float(total) for total, _ in found) / sum(labels for _, labels in found)

    def _loss(self, batch: Any, smoothing: float) -> tuple[Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return self.loss(self.model, batch, smoothing)


def best_of(make: Callable[[str], Learner], rates: Iterable[float], contest: Contest) -> tuple[nn.Module, float]:
    """What is trained in the seconds left, after trials of precision and rate; and how long that took."""
    precision = min(("fp32", "bf16"), key=lambda name: make(name).step_s())
    trial_s = TRIAL_SHARE * contest.left_s
    rate = min(rates, key=lambda each: make(precision).train(each, trial_s, 1))
    learner, begun = make(precision), clock()
    learner.train(rate, contest.left_s, LOOKS)
    return learner.model.eval(), clock() - begun


def bart(contest: Contest) -> Outcome:
    """A BART of about our size."""
    prepared = prepare(contest.run)
    tokenizer = prepared.codec
    assert isinstance(tokenizer, Tokenizer)
    dim, layers = _bart_size(tokenizer.vocab_size, contest.plan.num_params)
    pairs = {name: _id_pairs(getattr(prepared, name), prepared.row_len) for name in ("train", "valid")}

    def make(precision: str) -> Learner:
        torch.manual_seed(contest.run.seed)
        model = BartForConditionalGeneration(_bart_config(tokenizer.vocab_size, prepared.row_len, dim, layers)).train()
        feed = itertools.chain.from_iterable(_alike(pairs["train"], epoch) for epoch in itertools.count())
        return Learner(model, _bart_loss, feed, lambda: _alike(pairs["valid"], 0), precision)

    model, train_s = best_of(make, RATES["bart"], contest)
    sources, references = [example[0] for example in prepared.test], [example[1] for example in prepared.test]
    written = _summaries(model, tokenizer, prepared.row_len, sources)
    return Outcome(summary_metrics(written, references), train_s, sum(each.numel() for each in model.parameters()))


def _bart_size(vocab_size: int, wanted: int) -> tuple[int, int]:
    """Width and layers of a stack for the nearest number of parameters."""
    sizes = itertools.product((64, 128, 192, 256, 320, 384, 512), (1, 2, 3, 4, 6))
    return min(sizes, key=lambda size: abs(math.log((vocab_size + 28 * size[0] * size[1]) * size[0] / wanted)))


def _bart_config(vocab_size: int, row_len: int, dim: int, layers: int) -> BartConfig:
    stacks: dict[str, Any] = {f"{side}_layers": layers for side in ("encoder", "decoder")}
    stacks |= {f"{side}_attention_heads": dim // 64 for side in ("encoder", "decoder")}
    stacks |= {f"{side}_ffn_dim": 4 * dim for side in ("encoder", "decoder")}
    return BartConfig(
        vocab_size=vocab_size,
        d_model=dim,
        **stacks,
        max_position_embeddings=row_len + 2,
        dropout=0.1,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
    )


IdPair = tuple[list[int], list[int]]


def _id_pairs(encoded: Any, row_len: int) -> list[IdPair]:
    """<s> source </s>, cut to the row, and </s> target </s>; ours leaves out the pairs that these cut."""
    return [
        ([BOS, *source.tolist()[: row_len - 2], EOS], [EOS, *target.tolist()[: row_len - 2], EOS])
        for source, target in zip(encoded.source, encoded.target, strict=True)
    ]


def _alike(pairs: list[IdPair], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pairs of like length, in random order, of about `BATCH_TOKENS` source positions."""
    shuffle = random.Random(seed)
    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place][0]) + shuffle.uniform(0, 3))
    ends = np.cumsum([len(pairs[place][0]) for place in order])
    batches = np.split(order, np.flatnonzero(np.diff(ends // BATCH_TOKENS)) + 1)
    shuffle.shuffle(batches)
    for places in batches:
        yield _padded([pairs[place][0] for place in places]), _padded([pairs[place][1] for place in places])


def _padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def _bart_loss(model: nn.Module, batch: tuple[Tensor, Tensor], smoothing: float) -> tuple[Tensor, int]:
    source, target = batch
    found = model(input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=target[:, :-1])
    wanted = target[:, 1:].flatten()
    logits = found.logits.float().flatten(0, 1)
    total = F.cross_entropy(logits, wanted, ignore_index=PAD, label_smoothing=smoothing, reduction="sum")
    return total, int((wanted != PAD).sum())


@torch.no_grad()
def _summaries(model: Any, tokenizer: Tokenizer, row_len: int, sources: list[str]) -> list[str]:
    ids = [[BOS, *row[: row_len - 2], EOS] for row in tokenizer.encode_batch(sources)]
    order, outputs = sorted(range(len(ids)), key=lambda place: len(ids[place])), [""] * len(ids)
    for start in range(0, len(order), 32):
        places = order[start : start + 32]
        source = _padded([ids[place] for place in places])
        longest = max_new(source.shape[1], row_len)
        found = model.generate(
            input_ids=source, attention_mask=(source != PAD).long(), num_beams=BEAMS, max_new_tokens=longest
        )
        for place, row in zip(places, found.tolist(), strict=True):
            outputs[place] = tokenizer.decode([token for token in row if token not in (PAD, BOS, EOS)])
    return outputs


def cnn(contest: Contest) -> Outcome:
    """A plain CNN of about our FLOPs an image."""
    prepared = prepare(contest.run)
    codec = prepared.codec
    assert isinstance(codec, PictureClasses)
    classes, size = codec.classes, codec.size
    shape = (1, size.channels, size.height, size.width)
    width = min(WIDTHS, key=lambda each: abs(math.log(_flops(each, shape) / contest.plan.flops_per_token)))
    train = prepared.make_batches(prepared.train, IMAGES, contest.run.seed)
    valid = prepared.make_batches(prepared.valid, IMAGES, 0, train)

    def make(precision: str) -> Learner:
        torch.manual_seed(contest.run.seed)
        model = plain_cnn(size.channels, width, len(classes.names)).train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not declare it
        feed = (batch for _, batch in stream(train))
        return Learner(model, _image_loss, feed, lambda: map(valid.batch, valid.order(0)), precision)

    model, train_s = best_of(make, RATES["cnn"], contest)
    truth = np.array([classes.number(example[1]) for example in prepared.test])
    with torch.inference_mode():
        pixels = codec.batches([example[0] for example in prepared.test])
        chances = torch.cat([model(inputs["source"]).double().softmax(1) for _, inputs in pixels]).numpy()
    return Outcome(class_metrics(truth, chances, classes), train_s, sum(each.numel() for each in model.parameters()))


def plain_cnn(channels: int, width: int, classes: int) -> nn.Sequential:
    """Three stages of two convolutions, each twice as wide as the one before and half as large."""
    layers: list[nn.Module] = []
    for stage in range(3):
        out = width << stage
        for given in (channels if stage == 0 else out // 2, out):
            layers += [nn.Conv2d(given, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(out, classes))


def _flops(width: int, shape: tuple[int, ...]) -> float:
    """Of one image forward and backward, counted."""
    with FlopCounterMode(display=False) as counter:
        plain_cnn(shape[1], width, 10).eval()(torch.zeros(shape)).sum().backward()
    return float(counter.get_total_flops())


def _image_loss(model: nn.Module, batch: dict[str, Tensor], smoothing: float) -> tuple[Tensor, int]:
    wanted = batch["labels"][:, 0]
    logits = model(batch["source"]).float()
    return F.cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="sum"), int((wanted >= 0).sum())
