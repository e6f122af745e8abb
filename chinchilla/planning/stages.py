"""The stages that a pipeline cuts a model into: what each holds, what it needs beside, and what crosses each cut.

Layers are numbered in order of execution, the encoder's first. What belongs to none goes with the one beside it: an
embedding with its side's first, a closing norm with its side's last, the head with the last of all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import BYTES, FP32, Part, parts
from chinchilla.planning.count import Batch, has_cross, parameters, stacks
from chinchilla.planning.memory import Memory, recomputed, tensor_state


@dataclass(frozen=True)
class Piece:
    """A part of a model: parameters, bytes of their state, and of activations kept for one micro-batch's way back.

    Every stage that has one of `layers` holds it: a tied table may be on three stages.
    """

    layers: tuple[int, ...]
    num_params: int = 0
    state_bytes: float = 0.0
    saved_bytes: float = 0.0


def held_by(pieces: Sequence[Piece], stage: range) -> Piece:
    """All that a stage of these layers holds."""
    held = [piece for piece in pieces if any(layer in stage for layer in piece.layers)]
    return Piece(
        tuple(stage),
        sum(piece.num_params for piece in held),
        sum(piece.state_bytes for piece in held),
        sum(piece.saved_bytes for piece in held),
    )


def pieces(shape: Shape, batch: Batch, training: Training, held: Memory) -> tuple[Piece, ...]:
    """The pieces of a model whose step takes the memory `held` on one device; on one stage they add up to it."""
    params: Counter[tuple[int, ...]] = Counter()
    states: Counter[tuple[int, ...]] = Counter()
    for name, sizes in parameters(shape).items():
        layers = _users(shape, name)
        own = tensor_state({name: sizes}, training.optimizer, training.ema_decay > 0)
        params[layers] += own.weights // FP32
        states[layers] += own.total
    states[_firsts(shape)] += held.state.tables
    saved = _saved(shape, batch, training, held)
    return tuple(
        Piece(layers, params[layers], states[layers], saved[layers]) for layers in sorted({*params, *states, *saved})
    )


def beside(shape: Shape, batch: Batch, training: Training, held: Memory) -> tuple[float, ...]:
    """The most that lives beside state and saved activations while each layer goes backward, or is updated."""
    work = _parts(shape, batch, training)
    again = recomputed(shape, batch, training.precision, work) if training.recompute else {}
    streams = {str(side): _stream(batch, side) * shape.dim * BYTES[training.precision] for side, _ in stacks(shape)}
    most = [held.phases["update"] - held.state.total] * _num_layers(shape)
    most[-1] = max(most[-1], held.logits)
    alive: Counter[int] = Counter()
    for part in reversed(work):
        layer = _layer(shape, part.name)
        alive[layer] += again.get(part.name, 0)
        for op in reversed(part.ops):
            given = streams.get(part.name.split(".")[0], 0)
            most[layer] = max(most[layer], given + alive[layer] + op.makes + op.beside)
            alive[layer] += op.makes - op.drops - op.kept
    return tuple(float(size) for size in most)


def cuts(shape: Shape, batch: Batch, number_bytes: int) -> tuple[float, ...]:
    """Bytes that cross the cut after each layer but the last, one way, where a position takes `number_bytes` a channel.

    Of an encoder its own activations, of a decoder its own and what the encoder made of the source.
    """
    source, target = (float(number_bytes * rows * shape.dim) for rows in (batch.source_rows, batch.target_rows))
    return ((source,) * shape.num_encoder_layers + (target + source,) * shape.num_decoder_layers)[:-1]


def _saved(shape: Shape, batch: Batch, training: Training, held: Memory) -> Counter[tuple[int, ...]]:
    """Activations kept by the layers that keep them; all of a decoder's keep one copy of the encoder's output."""
    work = _parts(shape, batch, training)
    again = recomputed(shape, batch, training.precision, work) if training.recompute else {}
    saved: Counter[tuple[int, ...]] = Counter()
    for part in work:
        saved[_layer(shape, part.name),] += part.kept - again.get(part.name, 0)
    saved[0,] += held.saved - saved.total()  # images, which are no operator's
    if has_cross(shape) and not training.recompute:
        first, last = _ends(shape)["decoder"]
        output = BYTES[training.precision] * batch.source_rows * shape.dim
        saved[first,] -= output
        saved[tuple(range(first, last + 1))] += output
    return saved


def _parts(shape: Shape, batch: Batch, training: Training) -> list[Part]:
    return parts(shape, batch, training.precision, training.dropout > 0, training.drop_path > 0)


def _stream(batch: Batch, side: str) -> int:
    return batch.source_rows if side == "encoder" else batch.target_rows


def _num_layers(shape: Shape) -> int:
    return shape.num_encoder_layers + shape.num_decoder_layers


def _ends(shape: Shape) -> dict[str, tuple[int, int]]:
    """The first and the last layer of each side."""
    found, first = {}, 0
    for side, layers in stacks(shape):
        found[str(side)] = (first, first + layers - 1)
        first += layers
    return found


def _firsts(shape: Shape) -> tuple[int, ...]:
    """The layers that something is embedded for."""
    return tuple(first for first, _ in _ends(shape).values())


def _users(shape: Shape, name: str) -> tuple[int, ...]:
    """The layers whose stages need a parameter."""
    ends, top = _ends(shape), _num_layers(shape) - 1
    module, *rest = name.split(".")
    if module == "embed":
        tied = shape.tied_head and name == "embed.tokens.weight"
        return tuple(dict.fromkeys((*_firsts(shape), *((top,) if tied else ()))))
    side = module.removesuffix("_reconstruction")
    if side not in ends:
        return (top,)
    return (ends[side][0] + int(rest[1]) if rest[0] == "layers" else ends[side][1],)


def _layer(shape: Shape, part: str) -> int:
    """The layer that a part of `activations.parts` goes with."""
    side, *rest = part.split(".")
    if side == "head":
        return _num_layers(shape) - 1
    first, last = _ends(shape)[side]
    if rest[0] == "embed":
        return first
    return first + int(rest[0]) if rest[0].isdigit() else last
