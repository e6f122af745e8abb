"""Open a trained model to ask it things: `chinchilla predict`, `evaluate`, `serve`, and `chinchilla.load`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from chinchilla.config.errors import DataError, FaultError, UsageError
from chinchilla.config.plan import TaskName
from chinchilla.config.run import Run
from chinchilla.data.classes import Classes
from chinchilla.data.codec import Asked
from chinchilla.data.rows import MalformedError
from chinchilla.data.tokenizer import Specials, Tokenizer
from chinchilla.models.folder import TOKENIZER, WEIGHTS
from chinchilla.models.hub import Loaded, read_model
from chinchilla.models.quantized import describe, num_params
from chinchilla.models.transformer import Transformer
from chinchilla.serving.answerer import Answer, Card
from chinchilla.serving.decoding import TokenDecoding
from chinchilla.tasks.dialogue import ChatCodec
from chinchilla.tasks.generate import prompt_ids
from chinchilla.tasks.task import Task
from chinchilla.verbs.prepare import KINDS, kind_of


@dataclass(frozen=True, eq=False)
class Model:
    """A model with its codec and task, ready to answer; what `serving` calls an answerer."""

    card: Card
    model: Transformer
    codec: Any
    task: Task

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns texts into tokens.

        Raises:
            UsageError: the model takes no texts.
        """
        tokenizer = getattr(self.codec, "tokenizer", self.codec)
        if not isinstance(tokenizer, Tokenizer):
            raise UsageError(f"{self.card.name} is a model for {self.card.task}, and takes no texts")
        return tokenizer

    def read(self, value: Any) -> Asked:
        """A question as the codec reads it: a text, an image file's path or bytes, a row by column.

        Raises:
            DataError: it cannot be answered; says why, and the mend.
        """
        try:
            return self.codec.read_question(value)
        except MalformedError as problem:
            raise DataError(str(problem)) from None

    def answer(self, questions: Sequence[Any], **options: Any) -> list[Answer]:
        """Answer what `read` gave, as one batch; `options` are those of the task's `serve`."""
        contents = self.task.serve(self.model, self.codec, questions, **options)
        return [Answer(content, self._written(content)) for content in contents]

    def decoding(self) -> TokenDecoding:
        """A running batch of completions.

        Raises:
            UsageError: the model continues no text.
        """
        if isinstance(self.codec, ChatCodec):
            ends = self.codec.template.stop_id(self.codec.tokenizer)
            return TokenDecoding(self.model, list, self.codec.tokenizer.stream, frozenset({ends}))
        if self.card.task != "generate":
            raise UsageError(f"{self.card.name} is a model for {self.card.task}, and continues no text")

        def encode(text: str) -> list[int]:
            return prompt_ids(self.model, self.codec, text, 1)

        return TokenDecoding(self.model, encode, self.codec.stream, frozenset({self.model.shape.eos_id}))

    def _written(self, content: Mapping[str, Any]) -> int:
        """Tokens of an answer that is a text, with the end token."""
        text = content.get("text")
        return 0 if text is None else len(self.tokenizer.encode(text)) + 1


def load(path: Path, run: Run | None = None) -> Model:
    """Open a run folder, a model folder of a known family, or a GGUF file. `run` has the task's settings.

    Raises:
        UsageError: nothing there is a model that can be opened.
        FaultError: its files are damaged.
    """
    folder = path / "model" if (path / "model").is_dir() else path
    loaded = read_model(folder)
    task = _task(loaded, folder)
    weights = folder if folder.is_file() else folder / WEIGHTS
    shape = loaded.shape
    codec, model = _codec(loaded, task, folder), loaded.model
    return Model(
        Card(
            name=path.resolve().name,
            task=task,
            num_params=num_params(model),
            size_bytes=weights.stat().st_size if weights.is_file() else 0,
            precision=(describe(model) or {"scheme": "fp32"})["scheme"],
            max_len=shape.max_len,
            created=int(weights.stat().st_mtime) if weights.is_file() else 0,
            metrics=_metrics(loaded.config),
            form=codec.form,
        ),
        model,
        codec,
        kind_of(task).make_task(run),
    )


def _task(loaded: Loaded, folder: Path) -> TaskName:
    """What a folder of ours says it is for; of another's what its stacks can do."""
    named = loaded.config.get("task")
    if _is_own(loaded) and named in KINDS:
        return cast(TaskName, named)
    if not loaded.shape.num_decoder_layers:
        raise UsageError(f"{folder}: an encoder alone has no answers to give")
    return "translate" if loaded.shape.num_encoder_layers else "generate"


def _codec(loaded: Loaded, task: TaskName, folder: Path) -> Any:
    shape = loaded.shape
    if not _is_own(loaded):
        if loaded.tokenizer_json is None:
            raise UsageError(f"{folder}: tokenizer.json is missing, so that texts cannot be turned into tokens")
        specials = Specials(shape.pad_id, shape.bos_id, shape.eos_id, shape.pad_id)
        return Tokenizer.from_json(loaded.tokenizer_json, specials, f"{folder}/{TOKENIZER}")
    settings = loaded.config.get("codec")
    codec = kind_of(task).open_codec(settings if isinstance(settings, dict) else {}, loaded.tokenizer_json, str(folder))
    tokenizer = getattr(codec, "tokenizer", codec)
    if isinstance(tokenizer, Tokenizer) and tokenizer.vocab_size > shape.vocab_size:
        raise FaultError(
            f"{folder}: tokenizer.json has ids up to {tokenizer.vocab_size - 1}, the model knows {shape.vocab_size}; "
            "one of the two is another model's: put back the tokenizer.json that was written with this model"
        )
    classes = getattr(codec, "classes", None)
    if isinstance(classes, Classes) and len(classes.names) != shape.num_classes:
        raise FaultError(
            f"{folder}: config.json names {len(classes.names)} classes, the model knows {shape.num_classes}; "
            "one of the two is another model's: get the folder anew"
        )
    return codec


def _is_own(loaded: Loaded) -> bool:
    return loaded.config.get("model_type") == "chinchilla"


def _metrics(config: Mapping[str, Any]) -> dict[str, float]:
    """The scores that a folder of ours says it has; what is no number is left out."""
    given = config.get("metrics")
    pairs = given.items() if isinstance(given, dict) else ()
    return {name: float(value) for name, value in pairs if isinstance(value, int | float)}
