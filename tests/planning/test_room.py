"""Whether training fits the memory: activations kept, computed again, or not at all."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch, num_params
from chinchilla.planning.memory import memory
from chinchilla.planning.room import Room

SHAPE = Shape(
    vocab_size=1000, dim=128, num_heads=4, num_kv_heads=4, head_dim=32, ffn_dim=512, num_decoder_layers=6, max_len=256
)  # fmt: skip
ROOM = Room(0, Batch(8, 0, 256), "fp32", "adamw")


@given(st.integers(0, 2 * 10**9))
@settings(max_examples=30)
def test_activations_are_computed_again_only_where_there_is_no_room(size_bytes: int) -> None:
    kept, again = (ROOM.peak(SHAPE, way) for way in (False, True))
    expected = False if size_bytes >= kept else True if size_bytes >= again else None
    assert replace(ROOM, size_bytes=size_bytes).way(SHAPE) is expected
    assert again < 0.6 * kept


def test_the_recipe_decides() -> None:
    roomy = replace(ROOM, size_bytes=10**12)
    assert replace(roomy, recompute=True).way(SHAPE) is True
    assert replace(roomy, recompute=False).way(SHAPE) is False
    between = (ROOM.peak(SHAPE, False) + ROOM.peak(SHAPE, True)) // 2
    assert replace(ROOM, size_bytes=between, recompute=False).way(SHAPE) is None


def test_a_checkpoint_and_every_worker_take_their_part() -> None:
    needs = memory(SHAPE, ROOM.batch, "fp32", "adamw", accumulation=2)
    alone = replace(ROOM, accumulation=2).peak(SHAPE, False)
    two = replace(ROOM, accumulation=4, workers=2).peak(SHAPE, False)
    weights = 4 * num_params(SHAPE)
    assert alone >= needs.peak + 3 * weights  # the copies of the weights and of two moments
    assert two - alone == needs.saved + needs.logits + weights  # the weight being the sum of its own gradients


def test_larger_micro_batches_need_more() -> None:
    large = replace(ROOM, batch=Batch(32, 0, 256))
    assert large.peak(SHAPE, False) > 3 * ROOM.peak(SHAPE, False)
