"""Dialogue: the next token of the assistant's answers; bits per byte of those, and how varied new answers are."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.plan import TaskName
from chinchilla.data.chat import chat_rows, encode_chats, prompt_ids
from chinchilla.data.chat_template import CHAT, CHATML, ChatTemplate
from chinchilla.data.codec import Asked
from chinchilla.data.examples import Chat, Message
from chinchilla.data.rows import MalformedError
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.generate import Sampling, complete
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.generate import bits_per_byte
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Batch, Loss, Objective, Sample, Score

REPLIES = 100
"""Answers that are made anew to see how varied they are."""

REPLY_TOKENS = 48

Messages = tuple[Message, ...]


@dataclass(frozen=True, eq=False)
class ChatCodec:
    """Messages to ids and back."""

    tokenizer: Tokenizer
    template: ChatTemplate = CHAT

    @property
    def tokenizer_json(self) -> str:
        """As a codec (`data.codec`)."""
        return self.tokenizer.to_json()

    @property
    def settings(self) -> dict[str, Any]:
        """As a codec (`data.codec`): the template, for other programs to render alike."""
        return {"chat_template": self.template.jinja(), **self.tokenizer.settings}

    @classmethod
    def open(cls, settings: Mapping[str, Any], tokenizer_json: str | None, where: str) -> "ChatCodec":
        """The codec of a model folder.

        Raises:
            UsageError: there is no tokenizer.
        """
        return cls(tokenizer := Tokenizer.open(settings, tokenizer_json, where), template_for(tokenizer))

    @property
    def form(self) -> dict[str, Any]:
        """As a codec: a chat needs no form."""
        return {}

    def read_question(self, conversation: Mapping[str, Any]) -> Asked:
        """As a codec: the ids of `messages`, up to where the assistant is to speak.

        Where `room` is set, the oldest exchanges are left out until the rest has no more tokens than that.

        Raises:
            MalformedError: the messages are not in turn, or the last is too long.
        """
        messages = [Message(message["role"], message["content"]) for message in conversation["messages"]]
        _check_turns(messages)
        whole = self.template.encode(messages, self.tokenizer, answer=True)
        room = conversation.get("room")
        if room is None or len(whole) <= room:
            return Asked(whole, len(whole))
        kept = prompt_ids(messages, self.tokenizer, self.template, room)
        if kept is None:
            raise MalformedError(f"the last one is too long for the {room} tokens that can be read; shorten it")
        return Asked(kept, len(kept), (f"left out the oldest exchanges: read {len(kept)} of {len(whole)} tokens",))


def template_for(tokenizer: Tokenizer) -> ChatTemplate:
    """The form that a tokenizer has the marks of: ChatML where it knows that, else our own."""
    return CHATML if len(tokenizer.encode_marks(CHATML.ending)) == 1 else CHAT


class Dialogue:
    """Answer as the assistant in a conversation. An example is a `Chat` that ends with an answer."""

    name: TaskName = "dialogue"

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """See `token_objective`: the labels stand at the answers."""
        return token_objective(model, batch, objective)

    def score(
        self,
        model: Transformer,
        codec: ChatCodec,
        examples: Sequence[Chat],
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> Score:
        """`bits_per_byte` and `perplexity` (a token) of answers; `distinct1` and `distinct2` (Li 2016) of greedy ones.

        Of a chat longer than the model the oldest exchanges are left out.

        Raises:
            DataError: there are no chats, or none that fits.
        """
        if not examples:
            raise DataError("the test data has no chat to score on; name some in data.test")
        nats, tokens, size_bytes = 0.0, 0, 0
        for index, chat in enumerate(examples):
            found = answer_nats(model, codec, chat)
            nats, tokens, size_bytes = nats + found[0], tokens + found[1], size_bytes + found[2]
            on_progress((index + 1) / (len(examples) + min(REPLIES, len(examples))))
        if not tokens:
            raise DataError(
                f"no chat of the test data fits the model's {model.shape.max_len} tokens; give shorter ones"
            )
        asked = examples[:REPLIES]
        samples = []
        for index, chat in enumerate(asked):
            source, reference = self.show(chat)
            samples.append(Sample(source, reference or "", self.reply(model, codec, self.question(chat))))
            on_progress((len(examples) + index + 1) / (len(examples) + len(asked)))
        words = [sample.output.split() for sample in samples]
        metrics = {
            "bits_per_byte": bits_per_byte(nats, size_bytes),
            "perplexity": math.exp(nats / tokens),
            "distinct1": distinct(words, 1),
            "distinct2": distinct(words, 2),
        }
        return Score(metrics, tuple(samples))

    def question(self, example: Chat) -> Messages:
        """All that was said before the last answer."""
        last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
        return example.messages[:last]

    def reply(self, model: Transformer, codec: ChatCodec, question: Messages) -> str:
        """The likeliest answer, token by token."""
        return self.answer(model, codec, question, Sampling(REPLY_TOKENS, temperature=0))

    def serve(
        self, model: Transformer, codec: ChatCodec, questions: Sequence[list[int]], sampling: Sampling
    ) -> list[dict[str, Any]]:
        """`text` that the assistant says next, after each conversation."""
        stop = frozenset({codec.template.stop_id(codec.tokenizer)})
        return [{"text": codec.tokenizer.decode(complete(model, ids, sampling, stop)).strip()} for ids in questions]

    def show(self, example: Chat) -> tuple[str, str | None]:
        """The conversation, and the last answer."""
        asked = self.question(example)
        return "\n".join(f"{message.role}: {message.content}" for message in asked), example.messages[
            len(asked)
        ].content

    def answer(self, model: Transformer, codec: ChatCodec, messages: Messages, sampling: Sampling) -> str:
        """What the assistant says next.

        Raises:
            UsageError: the last question alone is longer than the model.
        """
        room = max(1, model.shape.max_len // 2, model.shape.max_len - sampling.max_new)
        ids = prompt_ids(messages, codec.tokenizer, codec.template, room)
        if ids is None:
            raise UsageError(f"the last message is longer than the {room} tokens that the model can read; shorten it")
        stop = frozenset({codec.template.stop_id(codec.tokenizer)})
        return codec.tokenizer.decode(complete(model, ids, sampling, stop)).strip()


@torch.inference_mode()
def answer_nats(model: Transformer, codec: ChatCodec, chat: Chat) -> tuple[float, int, int]:
    """Summed cross-entropy in nats of a chat's answers, their tokens (ends included), and their bytes of UTF-8.

    All 0 where the chat's last exchange does not fit the model.
    """
    rows = chat_rows(encode_chats([chat], codec.tokenizer, codec.template), model.shape.max_len)
    if not len(rows.ids.flat):
        return 0.0, 0, 0
    device = model.head.weight.device
    target = torch.from_numpy(rows.ids.flat).long()[None].to(device)
    labels = torch.from_numpy(rows.labels).long()[None].to(device)
    _, plain = model.head.loss(model(target=target).hidden, labels)
    kept = [int(label) for label in rows.labels if label >= 0]
    text = codec.tokenizer.decode(kept)
    return float(plain), len(kept), len(text.encode())


def _check_turns(messages: Sequence[Message]) -> None:
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 == 0 or any(role != ("user", "assistant")[place % 2] for place, role in enumerate(turns)):
        raise MalformedError("write perhaps one of system first, then user and assistant in turn, the last of user")
    silent = [place for place, message in enumerate(messages, 1) if not message.content.strip()]
    if silent:
        raise MalformedError(f"message {silent[0]} is empty; leave it out, or say something")


def distinct(texts: Sequence[Sequence[str]], size: int) -> float:
    """Different runs of `size` words as a share of all of them (Li 2016, arXiv 1510.03055); 0 where there are none."""
    runs = [tuple(words[start : start + size]) for words in texts for start in range(len(words) - size + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0
