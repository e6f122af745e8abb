"""Small models, settings and data for the training loop: a step takes a few milliseconds."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.data.batches import PairBatches
from chinchilla.data.encode import EncodedPairs, Ragged
from chinchilla.models.transformer import Transformer
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.translate import Translate
from chinchilla.training.monitor import Silent
from chinchilla.training.trainer import Trainer

PAD, BOS, EOS, MASK = 0, 1, 2, 3
FIRST = 4


def make_shape(**changes: Any) -> Shape:
    common: dict[str, Any] = {
        "vocab_size": 40,
        "dim": 16,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 8,
        "ffn_dim": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "max_len": 64,
    }
    return Shape(**(common | changes))


def make_training(**changes: Any) -> Training:
    common: dict[str, Any] = {
        "steps": 12,
        "batch_tokens": 96,
        "accumulation": 1,
        "optimizer": "muon",
        "learning_rate": 2e-3,
        "embedding_learning_rate": 3e-3,
        "weight_decay": 0.05,
        "schedule": "wsd",
        "warmup_steps": 2,
        "decay_fraction": 0.4,
        "clip_norm": 1.0,
        "label_smoothing": 0.0,
        "dropout": 0.0,
        "ema_decay": 0.0,
        "reconstruct_weight": 0.0,
        "mask_rate": 0.15,
        "precision": "fp32",
        "compile": False,
        "threads": 1,
        "eval_every": 4,
        "checkpoint_every": 4,
        "keep_checkpoints": 2,
        "log_every": 1,
        "seed": 0,
    }
    return Training(**(common | changes))


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    flat = np.array([token for row in rows for token in row], dtype=np.int32)
    return Ragged(flat, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def make_pairs(count: int = 60, seed: int = 0, longest: int = 9, vocab_size: int = 40) -> EncodedPairs:
    """Random sources; the target says the source backwards, one token shorter or longer."""
    random = np.random.default_rng(seed)
    sources = [random.integers(FIRST, vocab_size, random.integers(1, longest)).tolist() for _ in range(count)]
    targets = [source[::-1][: len(source) - 1] if len(source) % 2 else [*source[::-1], FIRST] for source in sources]
    return EncodedPairs(ragged(sources), ragged(targets), PAD, BOS, EOS)


class Given:
    """Micro-batches that are given, the same in each epoch."""

    padding = 0.0

    def __init__(self, *given: dict[str, Tensor]) -> None:
        self.given = given

    @property
    def unique_tokens(self) -> int:
        return sum(int((batch["labels"] != -100).sum()) for batch in self.given)

    def num_batches(self, epoch: int) -> int:
        return len(self.given)

    def order(self, epoch: int) -> list[np.ndarray]:
        return [np.array([index]) for index in range(len(self.given))]

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self.given[int(rows[0])]


def make_trainer(folder: Path, model_seed: int = 0, shape: Shape | None = None, **changes: Any) -> Trainer:
    """A trainer on random pairs in the existing or new `folder`; settings and its own fields may be changed."""
    fields = Trainer.__dataclass_fields__.keys()
    own = {name: changes.pop(name) for name in list(changes) if name in fields}
    training = make_training(**changes)
    torch.manual_seed(model_seed)
    shape = shape or make_shape(reconstruct=training.reconstruct_weight > 0)
    folder.mkdir(exist_ok=True)
    batches = PairBatches(make_pairs(), 16, training.batch_tokens // training.accumulation, training.seed)
    return Trainer(
        **{
            "model": Transformer(shape, training.dropout),
            "task": Translate(),
            "training": training,
            "batches": batches,
            "valid": PairBatches(make_pairs(20, seed=1), 16, 96, 0, batches),
            "folder": RunFolder(folder),
            "monitor": Silent(),
            "flops_per_token": 1e4,
            "peak_flops_per_s": 1e9,
        }
        | own
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights by name, tied ones once, as checkpoints hold them."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def digest(tensors: dict[str, Tensor]) -> str:
    """One hash of names, shapes and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class EnoughError(Exception):
    """The run is cut off here."""


class Until(Silent):
    """A monitor that cuts the run off the first time that it comes to a step."""

    def __init__(self, step: int) -> None:
        self.last = step

    def step(self, step: int, *rest: float) -> None:
        if step == self.last:
            raise EnoughError


def overflow_once(trainer: Trainer, step: int) -> None:
    """Let the update after `step` steps leave weights that are infinite, unless the run has returned before."""
    update = trainer.optimizer.step

    def overflow(scale: float) -> None:
        update(scale)
        if trainer.progress.step == step and trainer.progress.rollbacks == 0:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(torch.inf)

    trainer.optimizer.step = overflow  # type: ignore[method-assign]
