"""Operators that Python calls while an answer is made.

Few tokens at a time are little work for a processor, and what a call costs whatever its size is most of a small model's
time. Counted is what torch's profiler shows of `models.generate` on a CPU in fp32, without the operators that operators
call. Block attention is counted roughly.
"""

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.planning.count import has_cross

NORM = {"layer": 1, "rms": 2}
ACTIVATION = {"relu2": 2, "swiglu": 3}
"""One of other kinds."""

ATTENTION, CACHED, CROSS, MLP = 10, 6, 10, 3
"""Of one layer: attention without norm and rotation, beside it with a cache, to a source, and the feed-forward's."""

ROTATE, QK_NORM, GATE = 9, 6, 5
ROTATION, POSITION = 9, 3
"""Made once a pass: the angles, or positions that are added."""

BLOCKS, CACHED_BLOCKS = 104, 65
"""What block attention adds about, reading and with a cache."""

TABLE_STEM, PIECES = 18, 8
STRIDED, STRIDED_STAGE = 7, 4
POOLED, POOLED_STAGE = 4, 11
"""Of an image's stem, and of each of its stages: two convolutions with ReLU, and pooling and norms where there are."""

GREEDY, BEAMS, COMPLETED, CLASSES = 12, 30, 11, 6
"""From the last states to a choice: of a translation, without and with beams, of a completion (drawn at a temperature 4
more), of a class."""

BEAM_LAYER = 4
"""A layer's keys and values put in order."""

CACHE_BEGUN = 16
"""A layer's first pass with a cache: the source's keys and values, buffers."""


def encoder_calls(shape: Shape) -> int:
    """Calls of a pass over a source, up to its states."""
    blocks = BLOCKS if shape.attention == "block" else 0
    return _stack(shape) + shape.num_encoder_layers * (_layer(shape) + blocks)


def decoder_calls(shape: Shape) -> int:
    """Calls of a pass of the decoder over what is new, with a cache, up to its states."""
    cross = CROSS + NORM[shape.norm] if has_cross(shape) else 0
    blocks = CACHED_BLOCKS if shape.attention == "block" else 0
    return _stack(shape) + shape.num_decoder_layers * (_layer(shape) + CACHED + cross + blocks)


def token_calls(shape: Shape, beam_size: int) -> int:
    """Calls for a new token of each beam: the decoder's, and the choice."""
    if beam_size > 1:
        return decoder_calls(shape) + BEAMS + BEAM_LAYER * shape.num_decoder_layers
    return decoder_calls(shape) + (GREEDY if has_cross(shape) else COMPLETED)


def _stack(shape: Shape) -> int:
    """What comes before and after the layers."""
    found = 2 if shape.stem is None else _stem(shape.stem)
    found += ROTATION if shape.position == "rotary" else POSITION
    found += NORM[shape.norm] * ((shape.norm_order == "pre") + shape.embed_norm)
    return found + shape.embed_scale


def _stem(stem: ImageStem | TableStem) -> int:
    """What makes a sequence of an image or a row."""
    if isinstance(stem, TableStem):
        return TABLE_STEM + PIECES * (stem.pieces > 0)
    stages = stem.patch.bit_length() - 1
    return POOLED + POOLED_STAGE * stages if stem.pooled else STRIDED + STRIDED_STAGE * stages


def _layer(shape: Shape) -> int:
    """Attention without a cache, and the feed-forward part, with their norms."""
    found = ATTENTION + MLP + ACTIVATION.get(shape.activation, 1) + 2 * NORM[shape.norm]
    found += ROTATE if shape.position == "rotary" else 0
    found += QK_NORM if shape.qk_norm else 0
    return found + (GATE if shape.attention == "gated" else 0)
