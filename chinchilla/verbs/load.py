"""Open a trained model to ask it things: `chinchilla predict`, `evaluate`, `serve`, and `chinchilla.load`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.plan import TaskName
from chinchilla.data.tokenizer import Specials, Tokenizer
from chinchilla.models.folder import TOKENIZER, WEIGHTS
from chinchilla.models.generate import Sampling
from chinchilla.models.hub import read_model
from chinchilla.models.quantized import describe, num_params
from chinchilla.models.transformer import Transformer
from chinchilla.serving.answerer import Card
from chinchilla.serving.decoding import TokenDecoding
from chinchilla.tasks.generate import Generate, prompt_ids
from chinchilla.tasks.translate import Translate


@dataclass(frozen=True, eq=False)
class Model:
    """A model with its tokenizer and task, ready to answer; what `serving` calls an answerer."""

    card: Card
    model: Transformer
    tokenizer: Tokenizer

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens that each text takes as input, special tokens included."""
        return [len(ids) + 1 for ids in self.tokenizer.encode_batch(list(texts))]

    def translate(self, texts: Sequence[str], beam_size: int = 4) -> list[str]:
        """Translate texts as one batch."""
        self._require("translate")
        return Translate(beam_size).answer(self.model, self.tokenizer, texts)

    def complete(self, prompt: str, sampling: Sampling) -> str:
        """Continue one prompt."""
        self._require("generate")
        return Generate().answer(self.model, self.tokenizer, prompt, sampling)

    def decoding(self) -> TokenDecoding:
        """A running batch of completions."""
        self._require("generate")
        shape = self.model.shape

        def encode(text: str) -> list[int]:
            return prompt_ids(self.model, self.tokenizer, text, 1)

        return TokenDecoding(self.model, encode, self.tokenizer.stream, frozenset({shape.eos_id}))

    def _require(self, task: str) -> None:
        if self.card.task != task:
            raise UsageError(f"{self.card.name} is a model for {self.card.task}, not for {task}")


def load(path: Path) -> Model:
    """Open a run folder, a model folder of a known family, or a GGUF file.

    Raises:
        UsageError: nothing there is a model that can be opened.
        FaultError: its files are damaged.
    """
    folder = path / "model" if (path / "model").is_dir() else path
    loaded = read_model(folder)
    if loaded.tokenizer_json is None:
        raise UsageError(f"{folder}: tokenizer.json is missing, so that texts cannot be turned into tokens")
    task: TaskName = "translate" if loaded.shape.num_encoder_layers and loaded.shape.num_decoder_layers else "generate"
    if not loaded.shape.num_decoder_layers:
        raise UsageError(f"{folder}: an encoder alone has no answers to give")
    weights = folder if folder.is_file() else folder / WEIGHTS
    shape = loaded.shape
    specials = Specials(shape.pad_id, shape.bos_id, shape.eos_id, shape.pad_id)
    own = loaded.config.get("model_type") == "chinchilla"
    tokenizer = Tokenizer.from_json(loaded.tokenizer_json, None if own else specials, f"{folder}/{TOKENIZER}")
    if own and tokenizer.vocab_size > shape.vocab_size:
        raise FaultError(
            f"{folder}: tokenizer.json has ids up to {tokenizer.vocab_size - 1}, the model knows {shape.vocab_size}; "
            "one of the two is another model's: put back the tokenizer.json that was written with this model"
        )
    model = loaded.model
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
        ),
        model,
        tokenizer,
    )


def _metrics(config: Mapping[str, Any]) -> dict[str, float]:
    """The scores that a folder of ours says it has; what is no number is left out."""
    given = config.get("metrics")
    pairs = given.items() if isinstance(given, dict) else ()
    return {name: float(value) for name, value in pairs if isinstance(value, int | float)}
