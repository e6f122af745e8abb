"""BLEU and chrF after equal time: our planned model against `transformers`' Marian, English to French, unseen packages.

    chinchilla data get ddtp-en-fr
    python bench/translate.py --minutes 20      writes bench/results/translate.csv; twice the minutes and scoring

Both see the same pairs through the same tokenizer. Ours is what `chinchilla plan recipes/translate-fr.toml` decides.
Marian (of about as many parameters) is trained as is usual for it: AdamW with betas 0.9 and 0.98, warm-up over a tenth
of the steps and linear decay, dropout and label smoothing 0.1, batches of pairs of like length with the padding masked,
its rate the best of three in short runs, its precision the faster one. The two take turns of some seconds: a slow
minute of the machine slows both; with `--threads 1` CPU seconds count. Both keep the weights that did best on the
validation pairs, and translate with 4 beams. The interval is a paired bootstrap's (sacrebleu, 1,000 samples).
"""

import argparse
import copy
import csv
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest
from torch import Tensor
from transformers import MarianConfig, MarianMTModel

from chinchilla.config.load import load_run
from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import num_params
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.translate import max_new
from chinchilla.training.monitor import Silent
from chinchilla.training.trainer import Trainer
from chinchilla.verbs.plan import plan
from chinchilla.verbs.prepared import Prepared

RECIPE = Path(__file__).parent.parent / "recipes" / "translate-fr.toml"
RESULTS = Path(__file__).parent / "results" / "translate.csv"

TURN_S = 4.0
VALIDATIONS = 10
RATES = (5e-4, 1e-3, 2e-3)
TRIAL_S = 45.0
BATCH_TOKENS = 2048
BEAMS = 4
PAD, BOS, EOS = 0, 1, 2


@dataclass
class Side:
    """One of the two: what takes a step, what validates, and the weights that did best so far."""

    name: str
    model: torch.nn.Module
    step: Callable[[], object]
    valid_loss: Callable[[], float]
    steps: int
    done: int = 0
    time_s: float = 0.0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)

    def take_turn(self) -> None:
        """Steps for some seconds; validate where one is due."""
        begun = clock()
        while self.done < self.steps and clock() - begun < TURN_S:
            self.step()
            self.done += 1
            if self.done == self.steps or self.done % max(1, self.steps // VALIDATIONS) == 0:
                self._validate()
        self.time_s += clock() - begun

    def _validate(self) -> None:
        loss = self.valid_loss()
        say(f"{self.name}: step {self.done}/{self.steps}, validation loss {loss:.4f}")
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = copy.deepcopy(self.model.state_dict())


class Marian:
    """`transformers`' Marian and its usual training."""

    def __init__(self, prepared: Prepared, dim: int, layers: int, rate: float, precision: str, steps: int) -> None:
        torch.manual_seed(0)
        config = MarianConfig(
            vocab_size=prepared.codec.vocab_size,
            d_model=dim,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=dim // 64,
            decoder_attention_heads=dim // 64,
            encoder_ffn_dim=4 * dim,
            decoder_ffn_dim=4 * dim,
            max_position_embeddings=512,
            activation_function="swish",
            dropout=0.1,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=BOS,
            decoder_start_token_id=BOS,
            forced_eos_token_id=None,
            scale_embedding=True,
        )
        self.prepared, self.precision = prepared, precision
        self.model = MarianMTModel(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
        warm = max(1, steps // 10)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
        )
        self.batches = self._batches()

    def step(self) -> None:
        """One optimizer step."""
        loss = self._loss(*next(self.batches), smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def valid_loss(self) -> float:
        """Nats a token on the validation pairs."""
        self.model.eval()
        nats = tokens = 0.0
        for rows in _alike(self.prepared.valid, np.random.default_rng(0)):
            source, target = _pairs(self.prepared.valid, rows)
            count = int((target[:, 1:] != PAD).sum())
            nats += float(self._loss(source, target, smoothing=0.0)) * count
            tokens += count
        self.model.train()
        return nats / tokens

    def _loss(self, source: Tensor, target: Tensor, smoothing: float) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.model(
                input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=target[:, :-1]
            )
        wanted = target[:, 1:].flatten()
        return F.cross_entropy(found.logits.float().flatten(0, 1), wanted, ignore_index=PAD, label_smoothing=smoothing)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            for rows in _alike(self.prepared.train, np.random.default_rng(epoch)):
                yield _pairs(self.prepared.train, rows)

    @torch.no_grad()
    def translate(self, texts: list[str]) -> list[str]:
        """By `generate`, with 4 beams."""
        tokenizer, outputs = self.prepared.codec, [""] * len(texts)
        ids = [[*row[:250], EOS] for row in tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        self.model.eval()
        for start in range(0, len(order), 32):
            some = order[start : start + 32]
            source = _padded([ids[index] for index in some])
            found = self.model.generate(
                input_ids=source,
                attention_mask=(source != PAD).long(),
                num_beams=BEAMS,
                max_new_tokens=max_new(source.shape[1], 256),
            )
            for index, row in zip(some, found.tolist(), strict=True):
                outputs[index] = tokenizer.decode([token for token in row if token not in (PAD, BOS, EOS)])
        return outputs


def _alike(pairs: Any, random: np.random.Generator) -> list[np.ndarray]:
    """Batches of pairs of like length, in random order, of about `BATCH_TOKENS` target tokens."""
    lengths = np.maximum(pairs.source.lengths, pairs.target.lengths) + random.uniform(0, 3, len(pairs.source.lengths))
    order = np.argsort(lengths)
    order = order[pairs.target.lengths[order] < 250]
    filled = np.cumsum(pairs.target.lengths[order] + 1) // BATCH_TOKENS
    batches = np.split(order, np.flatnonzero(np.diff(filled)) + 1)
    return [batches[index] for index in random.permutation(len(batches))]


def _pairs(pairs: Any, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    sources = [[*pairs.source[row].tolist(), EOS] for row in rows]
    targets = [[BOS, *pairs.target[row].tolist(), EOS] for row in rows]
    return _padded(sources), _padded(targets)


def _padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def make_ours(minutes: float) -> tuple[Side, Prepared, Trainer, float]:
    """What the plan decides, for as many steps as its minutes hold; and its step time."""
    words = (f"budget.time={minutes}m", f"train.threads={torch.get_num_threads()}")
    made, prepared = plan(load_run(RECIPE, words).run, say)
    trial = make_trainer(prepared, made.shape, made.training).steps()
    step_s = step_time(lambda: next(trial))
    training = made.training.model_copy(update={"steps": round(60 * minutes / step_s)})
    trainer = make_trainer(prepared, made.shape, training)
    steps = trainer.steps()
    side = Side("chinchilla", trainer.model, lambda: next(steps), trainer.valid_loss, training.steps)
    return side, prepared, trainer, step_s


def make_trainer(prepared: Prepared, shape: Shape, training: Training) -> Trainer:
    """Ours, from random weights."""
    torch.manual_seed(0)
    return Trainer(
        model=Transformer(shape, training.dropout),
        task=prepared.task,
        training=training,
        batches=prepared.batches(training),
        valid=prepared.valid_batches(training),
        folder=RunFolder(Path("bench")),  # never made: nothing is written
        monitor=Silent(),
        flops_per_token=1.0,
        peak_flops_per_s=1.0,
    )


def marian_size(prepared: Prepared, wanted: int) -> tuple[int, int]:
    """Width and layers of a stack for the nearest number of parameters."""
    sizes = {}
    for dim, layers in itertools.product((192, 256, 320, 384, 512), (2, 3, 4, 6)):
        sizes[dim, layers] = prepared.codec.vocab_size * dim + layers * dim * dim * (4 + 8 + 8 + 8)
    return min(sizes, key=lambda size: abs(math.log(sizes[size] / wanted)))


def step_time(step: Callable[[], object]) -> float:
    """Mean seconds of a step, once warm."""
    times = []
    for _ in range(25):
        begun = clock()
        step()
        times.append(clock() - begun)
    return statistics.fmean(times[5:])


def clock() -> float:
    """CPU seconds where there is one thread, which other programs do not lengthen; wall seconds else."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def best_marian(prepared: Prepared, dim: int, layers: int) -> tuple[float, str, float]:
    """The faster precision with its step time, and the rate that does best in short runs of `TRIAL_S` seconds."""
    times = {name: step_time(Marian(prepared, dim, layers, 1e-3, name, 1000).step) for name in ("bf16", "fp32")}
    precision = min(times, key=lambda name: times[name])
    steps = round(TRIAL_S / times[precision])
    losses = {}
    for rate in RATES:
        trial = Marian(prepared, dim, layers, rate, precision, steps)
        for _ in range(steps):
            trial.step()
        losses[rate] = trial.valid_loss()
        say(f"marian, {precision}, rate {rate:g}: validation loss {losses[rate]:.4f} after {steps} steps")
    return min(losses, key=lambda rate: losses[rate]), precision, times[precision]


def scores(outputs: list[str], references: list[str]) -> tuple[float, float]:
    """BLEU and chrF."""
    return BLEU().corpus_score(outputs, [references]).score, CHRF().corpus_score(outputs, [references]).score


def run(minutes: float) -> Iterator[dict[str, Any]]:
    """Train both, translate the test pairs, compare."""
    ours, prepared, trainer, own_s = make_ours(minutes)
    wanted = num_params(trainer.model.shape)
    dim, layers = marian_size(prepared, wanted)
    rate, precision, step_s = best_marian(prepared, dim, layers)
    steps = round(60 * minutes / step_s)
    marian = Marian(prepared, dim, layers, rate, precision, steps)
    theirs = Side("marian", marian.model, marian.step, marian.valid_loss, steps)
    say(f"ours: {wanted:,} parameters, {ours.steps} steps of {own_s:.3f} s; marian {layers}+{layers} layers of {dim}, "
        f"{marian.model.num_parameters():,} parameters, {steps} steps of {step_s:.3f} s")  # fmt: skip
    # Each stops at its minutes: its schedule was made for the speed measured before.
    while min(ours.done / ours.steps, theirs.done / theirs.steps) < 1:
        for side in (ours, theirs):
            side.take_turn()
    for side in (ours, theirs):
        side.model.load_state_dict(side.best)
    sources, references = [list(column) for column in zip(*prepared.test, strict=True)]
    answers = {
        "chinchilla": prepared.task.answer(trainer.model.eval(), prepared.codec, sources, beam_size=BEAMS),
        "marian": marian.translate(sources),
    }
    systems = [("marian", answers["marian"]), ("chinchilla", answers["chinchilla"])]
    metrics = {"bleu": BLEU(references=[references]), "chrf": CHRF(references=[references])}
    test = PairedTest(systems, metrics, references=None, test_type="bs", n_samples=1000)()[1]
    for place, side in enumerate((theirs, ours)):
        bleu, chrf = scores(answers[side.name], references)
        yield {
            "threads": torch.get_num_threads(),
            "side": side.name,
            "parameters": wanted if side is ours else marian.model.num_parameters(),
            "precision": trainer.training.precision if side is ours else precision,
            "rate": trainer.training.learning_rate if side is ours else rate,
            "steps": side.done,
            "seconds": round(side.time_s),
            "valid_loss": round(side.best_loss, 4),
            "bleu": round(bleu, 2),
            "chrf": round(chrf, 2),
            "bleu_interval": round(test["BLEU"][place].ci or 0, 2),
            "chrf_interval": round(test["chrF2"][place].ci or 0, 2),
            "p_value_bleu": test["BLEU"][place].p_value,
        }


def say(text: str) -> None:
    """Progress."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = list(run(arguments.minutes))
    for row in rows:
        say(str(row))
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
