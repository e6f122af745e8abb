"""The loss on the validation data, side by side like training's."""

from collections.abc import Sequence

import torch

from chinchilla.config.machine import Precision
from chinchilla.data.batches import Batches
from chinchilla.data.packing import Rows
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.task import Objective, Task, num_tokens
from chinchilla.training.device import autocast, to_device
from chinchilla.training.workers import Workers


def valid_loss(
    task: Task, batches: Batches, most: int, workers: Workers, device: torch.device, precision: Precision
) -> float:
    """Plain cross-entropy on the first `most` micro-batches, in nats a token; the models are in training mode after."""

    def nats(model: Transformer, share: Sequence[Rows]) -> tuple[float, int]:
        """Summed loss on these batches, and their tokens."""
        total, tokens = 0.0, 0
        model.eval()
        with torch.no_grad(), autocast(device, precision):
            for rows in share:
                batch = to_device(batches.batch(rows), device)
                total += float(task.loss(model, batch, Objective()).plain)
                tokens += num_tokens(batch)
        model.train()
        return total, tokens

    order, models = batches.order(0)[:most], workers.models
    found = workers.map(lambda index: nats(models[index], order[index :: len(models)]), range(len(models)))
    return sum(total for total, _ in found) / max(1, sum(tokens for _, tokens in found))
