"""The text tasks' loss: labels only, and reconstruction only where inputs were masked."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tasks_fakes import make_model
from torch import Tensor

from chinchilla.models.head import Reconstruction
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Objective, num_tokens

PAD, BOS, MASK = 0, 1, 3


def make_batch(rows: int = 3, length: int = 10) -> dict[str, Tensor]:
    """Rows of 10, 7 and 4 real tokens."""
    generator = torch.Generator().manual_seed(0)
    real = torch.arange(length) < torch.tensor([10, 7, 4])[:rows, None]
    labels = torch.randint(4, 200, (rows, length), generator=generator)
    target = torch.cat([torch.full((rows, 1), BOS), labels[:, :-1]], dim=1).masked_fill(~real, PAD)
    return {
        "source": torch.randint(4, 200, (rows, length), generator=generator).masked_fill(~real, PAD),
        "source_segments": real.long(),
        "target": target,
        "target_segments": real.long(),
        "labels": labels.masked_fill(~real, -100),
    }


def forward(model: Transformer, batch: dict[str, Tensor], **changes: Tensor) -> tuple[Tensor, Tensor]:
    given = batch | changes
    segments = {name: given[name] for name in ("source_segments", "target_segments")}
    hidden, memory = model(given["source"], given["target"], **segments)
    assert memory is not None
    return hidden, memory


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_summed_cross_entropy_of_the_labels(smoothing):
    model, batch = make_model(), make_batch()
    loss = token_objective(model, batch, Objective(label_smoothing=smoothing))
    logits = model.logits(forward(model, batch)[0]).flatten(0, 1)
    labels = batch["labels"].flatten()
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum", label_smoothing=smoothing)
    plain = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(loss.total, total, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.plain, plain, rtol=1e-5, atol=1e-4)
    assert num_tokens(batch) == 21
    assert loss.total.requires_grad and not loss.plain.requires_grad


def test_classes_weigh_and_the_loss_is_focal_where_asked_and_is_told_plain():
    model = make_model(num_decoder_layers=0, num_classes=3)
    source, labels = torch.randint(4, 200, (8, 5)), torch.full((8, 5), -100)
    labels[:, 0] = torch.arange(8) % 3
    batch = {"source": source, "labels": labels}
    logits, truth = model.logits(model(source).hidden[:, 0]), labels[:, 0]
    plain = F.cross_entropy(logits, truth, reduction="sum")
    weighted = token_objective(model, batch, Objective(class_weights=(0.5, 1.0, 3.0)))
    expected = F.cross_entropy(logits, truth, torch.tensor([0.5, 1.0, 3.0]), reduction="sum")
    torch.testing.assert_close(weighted.total, expected, rtol=1e-5, atol=1e-4)
    focal = token_objective(model, batch, Objective(focal_gamma=2.0))
    each = F.cross_entropy(logits, truth, reduction="none")
    torch.testing.assert_close(focal.total, ((1 - torch.exp(-each)) ** 2 * each).sum(), rtol=1e-4, atol=1e-5)
    for loss in (weighted, focal):
        torch.testing.assert_close(loss.plain, plain, rtol=1e-5, atol=1e-4)


def test_what_has_no_label_changes_no_loss():
    model, batch = make_model(), make_batch()
    before = token_objective(model, batch, Objective()).total
    wrong = batch["target"].masked_fill(batch["target_segments"] == 0, 77)
    after = token_objective(model, batch | {"target": wrong}, Objective()).total
    torch.testing.assert_close(before, after)


def test_text_alone_has_no_source():
    model = make_model(num_encoder_layers=0)
    batch = {name: tensor for name, tensor in make_batch().items() if name in ("target", "labels")}
    loss = token_objective(model, batch, Objective())
    logits = model.logits(model(target=batch["target"]).hidden)
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum")
    torch.testing.assert_close(loss.plain, expected, rtol=1e-5, atol=1e-4)


def test_reconstruction_adds_the_error_at_masked_inputs_of_both_sides():
    model, batch = make_model(reconstruct=True), make_batch()
    objective = Objective(label_smoothing=0.1, reconstruct_weight=0.7, mask_rate=0.4, mask_id=MASK)
    model.draw_from(torch.Generator().manual_seed(5))
    loss = token_objective(model, batch, objective)

    generator = torch.Generator().manual_seed(5)
    noised, masks = {}, {}
    for name in ("source", "target"):
        chosen = torch.rand(batch[name].shape, generator=generator) < 0.4
        masks[name] = chosen & (batch[f"{name}_segments"] > 0)
        noised[name] = torch.where(masks[name], MASK, batch[name])
    hidden, memory = forward(model, batch, **noised)
    logits, labels = model.logits(hidden).flatten(0, 1), batch["labels"].flatten()
    expected = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum", label_smoothing=0.1)
    plain = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    sides = {"source": (model.encoder_reconstruction, memory), "target": (model.decoder_reconstruction, hidden)}
    for name, (head, states) in sides.items():
        clean = model.embed.tokens.weight[batch[name][masks[name]]]
        clean = (clean - clean.mean(1, keepdim=True)) / (clean.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        guess = states[masks[name]] @ head.map.weight.T + head.map.bias
        expected = expected + 0.7 * 21 * ((guess - clean) ** 2).mean()
        assert 3 < int(masks[name].sum()) < 15
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(loss.plain, plain, rtol=1e-5, atol=1e-3)


def test_padding_is_never_masked():
    model, batch = make_model(reconstruct=True), make_batch()
    seen: list[Tensor] = []
    forward_ = model.forward

    def watched(source: Tensor, target: Tensor, **rest: Any) -> Any:
        seen.extend((source, target))
        return forward_(source, target, **rest)

    model.forward = watched  # type: ignore[method-assign]
    token_objective(model, batch, Objective(reconstruct_weight=1.0, mask_rate=1.0, mask_id=MASK))
    for ids, name in zip(seen, ("source", "target"), strict=True):
        assert torch.equal(ids == MASK, batch[name] != PAD)


def test_the_target_is_normalised_and_takes_no_gradient():
    head, masked = Reconstruction(16), torch.zeros(2, 5, dtype=torch.bool)
    masked[0, 1] = masked[1, 3] = masked[1, 4] = True
    generator = torch.Generator().manual_seed(0)
    hidden, clean = (torch.randn(2, 5, 16, generator=generator, requires_grad=True) for _ in range(2))
    loss = head.loss(hidden, clean, masked)
    loss.backward()
    assert clean.grad is None
    assert torch.equal(hidden.grad.abs().sum(2) > 0, masked)
    with torch.no_grad():
        torch.testing.assert_close(head.loss(hidden, clean * 9 + 4, masked), loss.detach(), rtol=1e-3, atol=1e-4)
        assert head.loss(hidden * 2, clean, masked) != loss


def test_nothing_masked_is_no_error():
    model, batch = make_model(reconstruct=True), make_batch()
    with_it = token_objective(model, batch, Objective(reconstruct_weight=3.0, mask_rate=0.0))
    without = token_objective(model, batch, Objective())
    torch.testing.assert_close(with_it.total, without.total)


def test_the_embedding_learns_nothing_through_the_target():
    """All of its gradient comes through the inputs: with the states cut off, none is left."""
    model, batch = make_model(reconstruct=True), make_batch()
    clean = model.embed.tokens(batch["source"])
    assert clean.requires_grad
    loss = model.encoder_reconstruction.loss(torch.randn(clean.shape), clean, batch["source"] != PAD)
    (gradient,) = torch.autograd.grad(loss, [model.embed.tokens.weight], allow_unused=True)
    assert gradient is None


def test_weight_zero_is_the_plain_path_to_the_bit():
    batch, plain, other = make_batch(), make_model(), make_model(reconstruct=True)
    other.load_state_dict(plain.state_dict(), strict=False)
    state = torch.get_rng_state()
    gradients = {}
    for name, model in (("plain", plain), ("other", other)):
        loss = token_objective(model, batch, Objective(label_smoothing=0.1, mask_rate=0.5))
        loss.total.backward()
        gradients[name] = {
            key: parameter.grad for key, parameter in model.named_parameters() if "reconstruction" not in key
        }
    assert gradients["plain"].keys() == gradients["other"].keys()
    assert all(torch.equal(gradients["plain"][key], gradients["other"][key]) for key in gradients["plain"])
    assert torch.equal(torch.get_rng_state(), state)
