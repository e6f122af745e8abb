"""The loss that most tasks share: cross-entropy of labels, and feature reconstruction in the same noised pass."""

import torch
from torch import Tensor

from chinchilla.models.embed import Embed
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.task import Batch, Loss, Objective, num_tokens


def token_objective(model: Transformer, batch: Batch, objective: Objective) -> Loss:
    """Cross-entropy of `labels`, plus weighted reconstruction of the inputs that were masked.

    L = Σ cross-entropy + tokens · λ · (encoder error + decoder error); each error is a mean over masked positions.
    """
    source, target = batch.get("source"), batch.get("target")
    segments = {"source_segments": batch.get("source_segments"), "target_segments": batch.get("target_segments")}
    embed = model.embed
    if objective.reconstruct_weight == 0 or not isinstance(embed, Embed):
        hidden, _ = model(source, target, **segments)
        return _labels_loss(model, hidden, batch, objective)
    noised_source, source_masked = _noised(source, objective, model)
    noised_target, target_masked = _noised(target, objective, model)
    hidden, memory = model(noised_source, noised_target, **segments)
    total, plain = _labels_loss(model, hidden, batch, objective)
    error = torch.zeros((), device=total.device)
    if model.encoder_reconstruction is not None and source_masked is not None:
        error = error + model.encoder_reconstruction.loss(memory, embed.tokens(source), source_masked)
    if model.decoder_reconstruction is not None and target_masked is not None:
        error = error + model.decoder_reconstruction.loss(hidden, embed.tokens(target), target_masked)
    return Loss(total + objective.reconstruct_weight * num_tokens(batch) * error, plain)


def _labels_loss(model: Transformer, hidden: Tensor, batch: Batch, objective: Objective) -> Loss:
    """Cross-entropy of `labels`, each counting for what its class weighs, or for how far off it is (focal loss)."""
    smoothing, weights = objective.label_smoothing, objective.class_weights
    labels = batch["labels"][:, : hidden.shape[1]]  # an image's stands first, whatever it is read from
    if not weights and not objective.focal_gamma:
        return Loss(*model.head.loss(hidden, labels, smoothing))
    on_device = torch.tensor(weights, device=hidden.device) if weights else None
    return Loss(*model.head.loss(hidden, labels, smoothing, on_device, objective.focal_gamma))


def _noised(ids: Tensor | None, objective: Objective, model: Transformer) -> tuple[Tensor | None, Tensor | None]:
    """Replace a share of the real tokens by the mask token; also say which."""
    if ids is None:
        return None, None
    chances = torch.rand(ids.shape, generator=model.generator).to(ids.device)
    masked = (chances < objective.mask_rate) & (ids != model.shape.pad_id)
    return ids.masked_fill(masked, objective.mask_id), masked
