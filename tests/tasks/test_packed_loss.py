"""What packing relies on: a pair among others in a row has the loss and the gradient that it has alone."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla.config.shape import Shape
from chinchilla.data.batches import PairBatches
from chinchilla.data.encode import EncodedPairs, Ragged
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Objective

PAD, BOS, EOS = 0, 1, 2


def ragged(rows: list[list[int]]) -> Ragged:
    flat = np.array([token for row in rows for token in row], dtype=np.int32)
    return Ragged(flat, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def make_batches() -> PairBatches:
    """Pairs of 0 to 9 tokens a side, several to a row; some rows are empty in the last batch."""
    random = np.random.default_rng(0)
    sides = [[random.integers(4, 60, random.integers(0, 10)).tolist() for _ in range(33)] for _ in range(2)]
    return PairBatches(EncodedPairs(ragged(sides[0]), ragged(sides[1]), PAD, BOS, EOS), 24, 120, seed=0)


def make_model(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": 60,
        "dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "ffn_dim": 48,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "max_len": 64,
        "qk_norm": True,
    }
    return Transformer(Shape(**(common | changes))).eval()


def token_losses(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
    """(rows, length), 0 where there is no label."""
    segments = {name: batch.get(name) for name in ("source_segments", "target_segments")}
    hidden, _ = model(batch["source"], batch["target"], **segments)
    return F.cross_entropy(model.logits(hidden).transpose(1, 2), batch["labels"], ignore_index=-100, reduction="none")


def alone(source: list[int], target: list[int]) -> dict[str, Tensor]:
    """A batch of one pair, without padding or segments."""
    rows = {"source": [*source, EOS], "target": [BOS, *target], "labels": [*target, EOS]}
    return {name: torch.tensor([row]) for name, row in rows.items()}


def members(rows: np.ndarray) -> list[list[int]]:
    """The pairs of each packed row."""
    return [part[part >= 0].tolist() for part in np.split(rows, np.flatnonzero(rows < 0))]


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
@pytest.mark.parametrize("attention", ["full", "gated"])
@torch.no_grad()
def test_a_pair_has_the_loss_it_has_alone(attention, position):
    model, batches = make_model(attention=attention, position=position), make_batches()
    pairs, most, empty = 0, 0, 0
    for rows in batches.order(0):
        batch = batches.batch(rows)
        losses = token_losses(model, batch)
        packed = members(rows)
        most, empty = max(most, *map(len, packed)), empty + len(losses) - len(packed)
        for row, chosen in enumerate(packed):
            for segment, pair in enumerate(chosen, start=1):
                expected = token_losses(model, alone(*(side[pair].tolist() for side in sides(batches))))
                found = losses[row][batch["target_segments"][row] == segment]
                torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-5)
                pairs += 1
    assert (pairs, most > 3, empty > 0) == (33, True, True)


def sides(batches: PairBatches) -> tuple[Ragged, Ragged]:
    return batches._pairs.source, batches._pairs.target


@pytest.mark.parametrize("missing", ["source_segments", "target_segments"])
@torch.no_grad()
def test_without_segments_it_would_not(missing):
    """The test above can fail: neighbours do disturb each other."""
    model, batches = make_model(), make_batches()
    batch = batches.batch(batches.order(0)[0])
    whole = token_losses(model, batch)
    batch[missing] = (batch[missing] > 0).long()
    changed = (token_losses(model, batch) - whole).abs() > 1e-3
    assert changed.any()


@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_a_packed_batch_has_the_summed_gradient_of_its_pairs(position):
    model, batches = make_model(position=position, attention="gated"), make_batches()
    rows = batches.order(0)[-1]
    token_objective(model, batches.batch(rows), Objective(label_smoothing=0.1)).total.backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for pair in (pair for chosen in members(rows) for pair in chosen):
        batch = alone(*(side[pair].tolist() for side in sides(batches)))
        token_objective(model, batch, Objective(label_smoothing=0.1)).total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)
