"""An input of a classifier as numbers on the way from a baseline: what attributions are reckoned on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chinchilla.data.picture_classes import PictureClasses
from chinchilla.data.table_classes import TableClasses
from chinchilla.data.text_classes import TextClasses
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.embed import Embed
from chinchilla.models.stem import Columns, Stem
from chinchilla.models.transformer import Transformer

Explained = TextClasses | PictureClasses | TableClasses
"""Codecs of models that can be explained."""


class Part(NamedTuple):
    """A piece of a text, a patch of an image by "row, column", or a column with the row's value."""

    name: str
    value: str = ""


@dataclass(frozen=True, eq=False)
class Subject:
    """One input, the baseline it is set against, and what of it belongs together.

    `given`, `baseline` (1, …) are what `logits` takes, with any number of rows: the vectors of tokens or columns, or
    the pixels. `place` (broadcastable to `given[0]`) and `seen` (positions,) hold the part that each number, and each
    position of the model, belongs to; `len(parts)` where to none, as the class token.
    """

    source: Tensor
    given: Tensor
    baseline: Tensor
    place: Tensor
    seen: Tensor
    parts: tuple[Part, ...]
    logits: Callable[[Tensor], Tensor]
    about: str


def make_subject(model: Transformer, codec: Explained, question: Any) -> Subject:
    """What there is to explain in a question that the codec has read."""
    match codec:
        case TextClasses():
            return _text(model, codec, question)
        case PictureClasses():
            return _picture(model, codec, question)
        case TableClasses():
            return _row(model, codec, question)


def _source(model: Transformer, codec: Any, question: Any) -> Tensor:
    ((_, inputs),) = codec.batches([question])
    return inputs["source"].to(model.head.weight.device)


def _text(model: Transformer, codec: TextClasses, text: str) -> Subject:
    """Tokens' vectors, against those of <pad> or <mask> in every place but the class token's.

    A baseline should say nothing (Sundararajan 2017, §3), and a model may not have learned either token: the one that
    leaves it less sure is taken.
    """
    source = _source(model, codec, text)
    assert isinstance(model.embed, Embed)
    table, tokenizer = model.embed.tokens, codec.tokenizer
    pieces, numbers = _pieces(tokenizer, source[0, 1:].tolist())
    seen = torch.tensor([len(pieces), *numbers], device=source.device)
    parts, logits = tuple(map(Part, pieces)), _logits(model, table, source)
    blanks = source.repeat(2, 1)
    blanks[:, 1:] = torch.tensor([[tokenizer.pad_id], [tokenizer.mask_id]])
    with torch.no_grad():
        given, baselines = table(source), table(blanks)
        taken = int(logits(baselines).softmax(1).amax(1).argmin())
    about = f"every token replaced by {('<pad>', '<mask>')[taken]}"
    return Subject(source, given, baselines[taken : taken + 1], seen[:, None], seen, parts, logits, about)


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], list[int]]:
    """Texts of whole characters, and the one that each token belongs to."""
    pieces: list[str] = []
    stream, numbers = tokenizer.stream(), []
    for token in ids:
        numbers.append(len(pieces))
        piece = stream.push(token)
        if piece:
            pieces.append(piece)
    if numbers and numbers[-1] == len(pieces):  # the last character is unfinished
        pieces.append(stream.finish())
    return pieces, numbers


def _picture(model: Transformer, codec: PictureClasses, question: Any) -> Subject:
    """Pixels, against the training data's mean colour."""
    source, stem = _source(model, codec, question), model.shape.stem
    assert stem is not None and stem.kind == "image"
    rows, columns = stem.height // stem.patch, stem.width // stem.patch
    patches = torch.arange(rows * columns, device=source.device)
    place = patches.view(1, rows, columns).repeat_interleave(stem.patch, 1).repeat_interleave(stem.patch, 2)
    seen = torch.cat([patches.new_tensor([len(patches)] * stem.class_token), patches])
    parts = tuple(Part(f"{row}, {column}") for row in range(rows) for column in range(columns))

    def logits(x: Tensor) -> Tensor:
        return model.logits(model.read_out(model.encode(x))[:, 0])

    about = "every pixel of the training data's mean colour"
    return Subject(source, source, torch.zeros_like(source), place, seen, parts, logits, about)


def _row(model: Transformer, codec: TableClasses, row: Mapping[str, object]) -> Subject:
    """Columns' vectors, against those of a row without a character of its own."""
    source = _source(model, codec, row)
    assert isinstance(model.embed, Stem) and isinstance(model.embed.inner, Columns)
    columns = model.embed.inner
    with torch.no_grad():
        given, baseline = columns(source), _middle(columns, codec.columns.cardinalities)[None]
    place = torch.arange(source.shape[1], device=source.device)
    seen = torch.cat([place.new_tensor([len(place)]), place])
    numbers = (Part(each.name, _cell(row.get(each.column))) for each in codec.columns.numbers)
    categories = (Part(each.name, _cell(row.get(each.column))) for each in codec.columns.categories)
    parts = (*numbers, *categories)
    about = "every number in the middle of what train has, every category at the mean of its values"
    return Subject(source, given, baseline, place[:, None], seen, parts, _logits(model, columns, source), about)


def _middle(columns: Columns, cardinalities: tuple[int, ...]) -> Tensor:
    """Vectors (columns, dim) of numbers in the middle, 0, and of the mean of each category's known values."""
    tables = columns.categories.split(list(cardinalities))
    known = [table[2:] if len(table) > 2 else table for table in tables]  # 0 is missing, 1 unknown
    (numbers,) = columns.lines(columns.numbers.new_zeros(1, columns.num_numeric))
    return torch.cat([numbers, *(table.mean(0, keepdim=True) for table in known)]) + columns.column


def _cell(value: object) -> str:
    return "missing" if value is None or value == "" else str(value)


def _logits(model: Transformer, module: nn.Module, source: Tensor) -> Callable[[Tensor], Tensor]:
    """The model's answers (batch, classes) when `module` gives `x` (batch, …) in place of what it makes of `source`."""

    def logits(x: Tensor) -> Tensor:
        handle = module.register_forward_hook(lambda *_: x)
        try:
            return model.logits(model.encode(source)[:, 0])
        finally:
            handle.remove()

    return logits
