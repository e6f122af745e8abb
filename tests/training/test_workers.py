"""Workers: the same sums side by side, each with noise of its own that can be taken up again."""

import threading
import time

import pytest
import torch
from training_fakes import make_pairs, make_shape

from chinchilla.data.batches import PairBatches
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Loss, Objective
from chinchilla.training.workers import Workers


def make_model(dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    return Transformer(make_shape(), dropout).train()


def micro_batches(count: int) -> list[dict[str, torch.Tensor]]:
    batches = PairBatches(make_pairs(), 16, 48, 0)
    return [batches.batch(rows) for rows in batches.order(0)[:count]]


def plain_loss(model: Transformer, batch: dict[str, torch.Tensor]) -> Loss:
    return token_objective(model, batch, Objective())


def test_a_twin_shares_the_weights():
    model, twin = Workers(make_model(), 2, 0).models
    assert twin is not model
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
    assert twin.head.weight is twin.embed.tokens.weight
    with torch.no_grad():
        model.head.weight.mul_(2)
    (batch,) = micro_batches(1)
    assert plain_loss(model, batch).plain == plain_loss(twin, batch).plain


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_gradients_are_the_sum_over_micro_batches(number, count):
    model, batches = make_model(), micro_batches(number)
    losses = [plain_loss(model, batch) for batch in batches]
    expected = torch.autograd.grad(sum(loss.total for loss in losses), list(model.parameters()))
    workers = Workers(model, count, 0)
    found = workers.gradients(batches, plain_loss)
    assert found.nats == pytest.approx(float(sum(loss.plain for loss in losses)), rel=1e-6)
    for one, other in zip(found.tensors, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    workers.close()


def test_every_worker_has_noise_of_its_own():
    workers, (batch,) = Workers(make_model(dropout=0.3), 2, 0), micro_batches(1)
    first, second = (plain_loss(model, batch).plain for model in workers.models)
    assert first != second


def test_who_is_ahead_changes_no_bit():
    """Either worker is held up in turn, and torch's own random numbers are drawn meanwhile."""
    batches, found = micro_batches(4), []
    for held in (None, 0, 1):
        workers = Workers(make_model(dropout=0.3), 2, seed=7)

        def loss(model, batch, workers=workers, held=held):
            if held is not None and model is workers.models[held]:
                time.sleep(0.02)
                torch.rand(5)
            return plain_loss(model, batch)

        found.append(workers.gradients(batches, loss))
        workers.close()
    for other in found[1:]:
        assert other.nats == found[0].nats
        assert all(torch.equal(a, b) for a, b in zip(other.tensors, found[0].tensors, strict=True))


def test_noise_is_taken_up_where_it_was_left():
    batches = micro_batches(2)
    workers = Workers(make_model(dropout=0.3), 2, 0)
    workers.gradients(batches, plain_loss)
    state = {name: tensor.clone() for name, tensor in workers.state().items()}
    expected = workers.gradients(batches, plain_loss).nats
    other = Workers(make_model(dropout=0.3), 2, seed=99)
    other.load(state)
    assert other.gradients(batches, plain_loss).nats == expected


def test_workers_run_at_the_same_time():
    """Each waits for the other: one after the other would never end."""
    both = threading.Barrier(2, timeout=20)
    workers = Workers(make_model(), 2, 0)

    def loss(model, batch):
        both.wait()
        return plain_loss(model, batch)

    workers.gradients(micro_batches(2), loss)
    workers.close()


def test_an_error_in_a_worker_is_raised_here():
    def loss(model, batch):
        raise ValueError("a mistake in a task")

    with pytest.raises(ValueError, match="a mistake in a task"):
        Workers(make_model(), 2, 0).gradients(micro_batches(2), loss)
