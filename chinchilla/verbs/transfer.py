"""Starting from a model that is there: its shape and its tokenizer for the plan, its weights for the new model."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.plan import FAMILIES, Family
from chinchilla.config.run import Model, Run
from chinchilla.config.shape import ImageStem, Shape, Stem, TableStem
from chinchilla.data.tokenizer import Specials, Tokenizer
from chinchilla.models.adapt import adapt_
from chinchilla.models.bottleneck import describe
from chinchilla.models.hub import MODEL_TYPE, Loaded, read_model
from chinchilla.models.quantized import is_quantized
from chinchilla.models.transformer import Transformer
from chinchilla.planning.bounds import Bound
from chinchilla.planning.count import parameters
from chinchilla.planning.search import Facts

log = logging.getLogger("chinchilla")

STANDS_FOR = {"classes": ("head.",), "items": ("head.", "embed.tokens."), "columns": ("embed.inner.",)}
"""The tensors that have a row for each class, item or column."""


@dataclass(frozen=True, eq=False)
class Start:
    """The model that a run starts from; its tensors whose names begin with `strange` ones stand for something else."""

    path: Path
    loaded: Loaded
    strange: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """Its shape."""
        return self.loaded.shape

    @property
    def is_own(self) -> bool:
        """Whether it is in this project's own layout, of a run, that is, and no model from elsewhere."""
        return self.loaded.config.get("model_type") == MODEL_TYPE

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises:
            UsageError: it has none.
        """
        if self.loaded.tokenizer_json is None:
            raise UsageError(
                f"model.start {self.path}: has no tokenizer.json, and texts need the one it was trained with"
            )
        specials = None if self.is_own else specials_in(self.loaded.tokenizer_json, self.shape)
        return Tokenizer.from_json(self.loaded.tokenizer_json, specials, f"{self.path}/tokenizer.json")

    def require_agreement(self, fixed: Model, family: Family) -> None:
        """Refuse settings of the shape that this model does not have; `max_len` is of the data's rows.

        Raises:
            UsageError: names the setting, what the model has, and the mend.
        """
        encoder, decoder = self._stacks(family, fixed)
        had = self.shape.model_dump() | {"num_encoder_layers": encoder, "num_decoder_layers": decoder}
        for name, value in fixed.model_dump(exclude={"start", "max_len"}, exclude_none=True).items():
            if value != had[name]:
                raise UsageError(
                    f"model.{name}: {json.dumps(value)} is asked for, and model.start {self.path} brings "
                    f"{json.dumps(had[name])} to this task: leave model.{name} out, or start from another model"
                )

    def shape_for(self, facts: Facts, fixed: Model) -> Shape:
        """The shape to train: this model's, with the stacks, the stem and the outputs that the task has.

        A decoder that is not there is new, and as deep as is fixed, else as the encoder.

        Raises:
            UsageError: the task needs an encoder, and there is none; or the rows are longer than the model.
        """
        old = self.shape
        encoder, decoder = self._stacks(facts.family, fixed)
        if facts.family != "decoder" and not encoder:
            raise UsageError(f"model.start {self.path}: has no encoder, which {facts.task} needs; start from another")
        if facts.family == "decoder" and not old.num_decoder_layers:
            raise UsageError(f"model.start {self.path}: has no decoder, which {facts.task} needs; start from another")
        stem = self._stem(facts)
        longest = max(facts.max_len, stem.num_positions if stem else 0)
        if longest > old.max_len:
            less: dict[type, str] = {
                ImageStem: "set a larger images.patch or a smaller images.size",
                TableStem: "start from another",
            }
            mend = less.get(type(stem), f"set model.max_len={old.max_len} or less")
            raise UsageError(
                f"model.start {self.path}: takes {old.max_len} positions, and the data's rows have {longest}; {mend}"
            )
        changes = {
            "num_encoder_layers": encoder,
            "num_decoder_layers": decoder,
            "num_classes": facts.num_classes,
            "stem": stem,
            "boxes": facts.boxes,
            "reconstruct": False,
        }
        return Shape.model_validate(old.model_dump() | changes)

    def _stem(self, facts: Facts) -> Stem | None:
        """The task's stem in this model's own form, or its weights would stand for something else."""
        stem, old = facts.stem, self.shape.stem
        if isinstance(stem, ImageStem) and isinstance(old, ImageStem):
            return stem.model_copy(update={"pooled": old.pooled})
        if isinstance(stem, TableStem) and isinstance(old, TableStem):
            return stem.model_copy(update={"pieces": old.pieces})
        return stem

    def _stacks(self, family: Family, fixed: Model) -> tuple[int, int]:
        """Encoder and decoder layers of a family's model that starts from this one."""
        old = self.shape
        decoder = old.num_decoder_layers or fixed.num_decoder_layers or old.num_encoder_layers
        return (0 if family == "decoder" else old.num_encoder_layers), (0 if family == "encoder" else decoder)

    def require_within(self, shape: Shape, held_to: Sequence[Bound]) -> None:
        """Hold the shape, which has no smaller one to fall back on, to the limits.

        Raises:
            BudgetError: it breaks one; names it and what is needed.
        """
        for bound in held_to:
            if not bound.holds(shape):
                raise BudgetError(
                    f"model.start {self.path}: needs {bound.show(bound.needs(shape))}, and {bound.key} allows "
                    f"{bound.show(max(0, bound.most))}: start from a smaller model, or allow more"
                )


def specials_in(tokenizer_json: str, shape: Shape) -> Specials:
    """The ids of a foreign tokenizer's special tokens, by their usual names; those that it lacks are the shape's."""
    added = json.loads(tokenizer_json).get("added_tokens") or ()
    known = {str(token.get("content")): int(token.get("id", 0)) for token in added if isinstance(token, dict)}

    def find(usual: tuple[str, ...], otherwise: int) -> int:
        return next((known[name] for name in usual if name in known), otherwise)

    return Specials(
        shape.pad_id,
        find(("[CLS]", "<s>"), shape.bos_id),
        find(("[SEP]", "</s>"), shape.eos_id),
        find(("[MASK]", "<mask>"), shape.pad_id),
    )


def read_start(path: Path) -> Start:
    """Open the model of a run folder, or a model folder of a known family.

    Raises:
        UsageError: there is no model, or one that is compressed or has bottleneck adapters.
        FaultError: it is damaged.
    """
    folder = path / "model" if (path / "model").is_dir() else path
    loaded = read_model(folder)
    if is_quantized(loaded.model):
        raise UsageError(f"model.start {path}: is compressed, and cannot be trained; start from the run it was made of")
    if describe(loaded.model):
        raise UsageError(
            f"model.start {path}: has bottleneck adapters, for which a new model has no place; start from the model "
            "that they were trained beside"
        )
    return Start(path, loaded)


def check_start(run: Run) -> None:
    """Refuse, before data is read, a model to start from that is not there, and settings that it does not have.

    A tokenizer that is asked for besides is warned of: the weights stand for that of the model.

    Raises:
        UsageError, FaultError: as `read_start` and `Start.require_agreement`.
    """
    start = run.model.start
    if start is None:
        return
    if not start.exists():
        raise UsageError(f"model.start {start}: there is nothing of that name; name a run's folder, or a model's")
    if asked := sorted(run.tokenizer.model_fields_set):
        log.warning("[tokenizer] %s: not used, since model.start %s brings its own", ", ".join(asked), start)
    if run.model.model_fields_set - {"start", "max_len"}:
        read_start(start).require_agreement(run.model, FAMILIES[run.task])


def for_codec(start: Start, settings: Mapping[str, Any]) -> Start:
    """The start of a run whose codec has these settings: what stands for other classes, items or columns is strange."""
    kept = start.loaded.config.get("codec")
    old, new = (_meanings(each) for each in (kept if isinstance(kept, dict) else {}, settings))
    strange = [part for name, parts in STANDS_FOR.items() for part in parts if old[name] != new[name]]
    return replace(start, strange=tuple(strange))


def _meanings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of `STANDS_FOR`'s tensors stand for, in order; numbers may have other quantiles."""
    plain = json.loads(json.dumps(settings))
    classes, columns = (value if isinstance(value := plain.get(name), dict) else {} for name in ("classes", "columns"))
    numbers = [(each.get("column"), each.get("part")) for each in columns.get("numbers", ()) if isinstance(each, dict)]
    return {
        "classes": classes.get("names"),
        "items": plain.get("items"),
        "columns": (numbers, columns.get("categories")),
    }


def fitting(start: Start, shape: Shape) -> dict[str, Tensor]:
    """The tensors of `start` that have a place of the same name, sizes and meaning in a model of this shape."""
    with torch.device("meta"):
        wanted = {name: parameter.shape for name, parameter in Transformer(shape).named_parameters()}
    own = dict(start.loaded.model.named_parameters())
    return {
        name: tensor.detach()
        for name, tensor in own.items()
        if wanted.get(name) == tensor.shape and not name.startswith(start.strange)
    }


def is_whole(start: Start, shape: Shape) -> bool:
    """Whether nothing of a model of this shape is new."""
    return len(fitting(start, shape)) == len(parameters(shape))


def told(start: Start, shape: Shape) -> str:
    """What a model of this shape takes over, and what of it is new, in words."""
    taken = fitting(start, shape)
    with torch.device("meta"):
        names = [name for name, _ in Transformer(shape).named_parameters()]
    new = sorted({_part(name) for name in names if name not in taken})
    numbers = sum(tensor.numel() for tensor in taken.values())
    return f"{len(taken)} of {len(names)} tensors ({numbers:,} numbers); new: {', '.join(new) or 'nothing'}"


def _part(name: str) -> str:
    """The stack, stem or head that a tensor is of."""
    return name.split(".")[0]


def new_model(shape: Shape, dropout: float, start: Start | None, adapter: Adapter | None) -> Transformer:
    """A model to train: random, but for what it takes over; with an adapter everything else is frozen."""
    model = Transformer(shape, dropout)
    own = dict(model.named_parameters())
    taken = {} if start is None else fitting(start, shape)
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    if adapter is not None:
        adapt_(model, with_new_head(adapter, start, shape))
    return model


def with_new_head(adapter: Adapter, start: Start | None, shape: Shape) -> Adapter:
    """The adapter, which also trains the head where that is new: it has to learn, whatever is frozen.

    Raises:
        UsageError: something else is new too, and would stay as it begins, at random.
    """
    taken = {} if start is None else fitting(start, shape)
    new = {_part(name) for name in parameters(shape) if name not in taken}
    if start is not None and new - {"head"}:
        raise UsageError(
            f"adapter: beside one only a head can be new, and of model.start {start.path} so would be "
            f"{', '.join(sorted(new - {'head'}))}; leave the adapter out, or start from a model that has them"
        )
    return adapter.model_copy(update={"also": tuple(dict.fromkeys((*adapter.also, "head")))}) if new else adapter
