"""The sides that `train_speed.py` times: ours, `transformers`, a plain loop; each a function that takes a step."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel

from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.models import marian
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import Batch
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.generate import Generate
from chinchilla.tasks.translate import Translate
from chinchilla.training.allocator import keep_freed_memory
from chinchilla.training.monitor import Silent
from chinchilla.training.trainer import Trainer

VOCAB, RATE, CLIP = 8192, 3e-4, 1.0
Step = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One side of the comparison: `side` is ours, plain or transformers."""

    side: str
    precision: str
    compiled: bool = False
    optimizer: str = "adamw"
    kind: str = "graph"

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"ours, {self.kind}, {self.optimizer}" if self.side == "ours" else self.side


CONTENDERS = (
    Contender("ours", "bf16"),
    Contender("transformers", "bf16"),
    Contender("plain", "bf16"),
    Contender("ours", "bf16", kind="plan"),
    Contender("transformers", "bf16", compiled=True),
    Contender("plain", "bf16", compiled=True),
    Contender("ours", "bf16", optimizer="muon", kind="plan"),
    Contender("transformers", "fp32"),
    Contender("plain", "fp32"),
    Contender("ours", "fp32"),
)

DECODER = Shape(
    vocab_size=VOCAB, dim=384, num_heads=6, num_kv_heads=6, head_dim=64, ffn_dim=1536, num_decoder_layers=6,
    max_len=256, norm="layer",
)  # fmt: skip
TRANSLATOR = Shape(
    vocab_size=VOCAB, dim=512, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=2048, num_encoder_layers=4,
    num_decoder_layers=3, max_len=128, norm="layer",
)  # fmt: skip
BATCHES = {"decoder": Batch(8, target_len=256), "encoder-decoder": Batch(16, source_len=128, target_len=128)}


def make_shape(task: str, kind: str) -> Shape:
    """The model as our planner builds it (`plan`), or with the reference's operators (`graph`)."""
    if task == "decoder":
        gpt2 = {"position": "learned", "bias": True, "activation": "gelu"}
        return DECODER.model_copy(update=gpt2 if kind == "graph" else {})
    theirs = {"position": "sinusoidal", "bias": True, "activation": "gelu", "norm_order": "post", "embed_scale": True}
    return TRANSLATOR.model_copy(update=theirs if kind == "graph" else {})


def make_batch(task: str, rows: int, seed: int) -> dict[str, Tensor]:
    """Ids without padding, as our data gives them; a translation's with its segments, one to a row."""
    random = torch.Generator().manual_seed(seed)
    sizes = BATCHES[task]
    batch = {name: torch.randint(4, VOCAB, (rows, sizes.target_len), generator=random) for name in ("target", "labels")}
    if task == "encoder-decoder":
        batch["source"] = torch.randint(4, VOCAB, (rows, sizes.source_len), generator=random)
        batch["source_segments"] = torch.ones_like(batch["source"])
        batch["target_segments"] = torch.ones_like(batch["target"])
    return batch


class Given:
    """The same micro-batches in each epoch."""

    unique_tokens, padding = 0, 0.0

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches

    def num_batches(self, epoch: int) -> int:
        """How many an epoch has."""
        return len(self.batches)

    def order(self, epoch: int) -> list[np.ndarray]:
        """The numbers of the micro-batches."""
        return [np.array([index]) for index in range(len(self.batches))]

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The one with that number."""
        return self.batches[int(rows[0])]


def make_training(contender: Contender, threads: int) -> Training:
    """The settings of ours: as many micro-batches as threads, so that each thread takes one."""
    return Training(
        steps=10**6, batch_tokens=2048, accumulation=threads, optimizer=contender.optimizer, learning_rate=RATE,
        embedding_learning_rate=RATE, weight_decay=0.1, schedule="wsd", warmup_steps=0, decay_fraction=0.1,
        clip_norm=CLIP, label_smoothing=0.0, dropout=0.0, ema_decay=0.0, reconstruct_weight=0.0, mask_rate=0.15,
        precision=contender.precision, compile=contender.compiled, threads=threads, eval_every=10**6,
        checkpoint_every=10**6, keep_checkpoints=1, log_every=10**6, seed=0,
    )  # fmt: skip


def our_step(task: str, contender: Contender, threads: int) -> Step:
    """The trainer's own step."""
    keep_freed_memory()
    given = Given([make_batch(task, BATCHES[task].size // threads, seed) for seed in range(threads)])
    trainer = Trainer(
        model=Transformer(make_shape(task, contender.kind)),
        task=Generate() if task == "decoder" else Translate(),
        training=make_training(contender, threads),
        batches=given,
        valid=given,
        folder=RunFolder(Path(tempfile.mkdtemp())),
        monitor=Silent(),
        flops_per_token=1.0,
        peak_flops_per_s=1.0,
    )
    steps = trainer.steps()
    return lambda: next(steps)


def their_step(model: nn.Module, loss: Callable[[], Tensor], precision: str) -> Step:
    """The usual loop around a loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    model.train()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = loss()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return found.item()

    return step


def transformers_step(task: str, contender: Contender, threads: int) -> Step:
    """GPT-2 or Marian of the same shape, without dropout."""
    shape, batch = make_shape(task, "graph"), make_batch(task, BATCHES[task].size, 0)
    if task == "decoder":
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=shape.max_len, n_embd=shape.dim, n_layer=6, n_head=shape.num_heads,
            activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        inputs = {"input_ids": batch["target"]}
    else:
        made = marian.write_config(shape) | {"dropout": 0.0, "use_cache": False}
        model = MarianMTModel(MarianConfig(**made))
        inputs = {"input_ids": batch["source"], "decoder_input_ids": batch["target"]}
    called = torch.compile(model) if contender.compiled else model
    # Its own `labels` are shifted for a decoder and not for Marian; given apart they are the same for both.
    labels = batch["labels"].flatten()
    return their_step(
        model, lambda: F.cross_entropy(called(**inputs).logits.flatten(0, 1).float(), labels), contender.precision
    )


class PlainBlock(nn.Module):
    """A block as nanoGPT writes it; with `cross` also a decoder's."""

    def __init__(self, shape: Shape, causal: bool, cross: bool) -> None:
        super().__init__()
        dim, self.heads, self.causal = shape.dim, shape.num_heads, causal
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3 if cross else 2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.kv = (nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)) if cross else (None, None)
        self.cross_out = nn.Linear(dim, dim) if cross else None
        self.mlp = nn.Sequential(nn.Linear(dim, shape.ffn_dim), nn.GELU(), nn.Linear(shape.ffn_dim, dim))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """(batch, length, dim) each → the same."""
        split = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(*split, is_causal=causal).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """`x` (batch, length, dim) → the same."""
        x = x + self.out(self.attend(*self.qkv(self.norms[0](x)).chunk(3, 2), self.causal))
        if self.query is not None:
            x = x + self.cross_out(self.attend(self.query(self.norms[2](x)), *self.kv(memory).chunk(2, 2), False))
        return x + self.mlp(self.norms[1](x))


class Plain(nn.Module):
    """A GPT-2-style model in the plainest torch, with an encoder where the shape has one."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        has_encoder = shape.num_encoder_layers > 0
        self.tokens, self.places = nn.Embedding(shape.vocab_size, shape.dim), nn.Embedding(shape.max_len, shape.dim)
        self.encoder = nn.ModuleList(PlainBlock(shape, False, False) for _ in range(shape.num_encoder_layers))
        self.decoder = nn.ModuleList(PlainBlock(shape, True, has_encoder) for _ in range(shape.num_decoder_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(shape.dim) for _ in range(2))
        nn.init.normal_(self.tokens.weight, std=0.02)

    def embed(self, ids: Tensor) -> Tensor:
        """(batch, length) → (batch, length, dim)."""
        return self.tokens(ids) + self.places(torch.arange(ids.shape[1]))

    def forward(self, target: Tensor, labels: Tensor, source: Tensor | None = None) -> Tensor:
        """Ids (batch, length) → the mean cross-entropy."""
        memory = None
        if source is not None:
            memory = self.embed(source)
            for block in self.encoder:
                memory = block(memory)
            memory = self.norms[0](memory)
        x = self.embed(target)
        for block in self.decoder:
            x = block(x, memory)
        logits = F.linear(self.norms[1](x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def plain_step(task: str, contender: Contender, threads: int) -> Step:
    """The plain model's."""
    model, batch = Plain(make_shape(task, "graph")), make_batch(task, BATCHES[task].size, 0)
    called = torch.compile(model) if contender.compiled else model
    return their_step(model, lambda: called(batch["target"], batch["labels"], batch.get("source")), contender.precision)


STEPS = {"ours": our_step, "transformers": transformers_step, "plain": plain_step}
