"""Models that are quick, predictable and watched: they stand in for real ones behind the HTTP interface."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import httpx

from chinchilla.config.errors import DataError
from chinchilla.data.codec import Asked
from chinchilla.serving.answerer import Answer, Card, Piece, Prompt
from chinchilla.serving.limits import Limits
from chinchilla.serving.server import Server, bind, make_server, url_of

METRICS = {"translate": {"bleu": 23.1, "chrf": 45.2}, "summarise": {"rougeL": 31.5}}
METRICS |= {f"classify_{what}": {"accuracy": 0.965, "macro_f1": 0.96} for what in ("text", "image", "table")}


def make_card(task: str, **changes) -> Card:
    facts = {"name": f"fake-{task}", "task": task, "num_params": 4_720_000, "size_bytes": 18_900_000}
    facts |= {"precision": "int8", "max_len": 256, "created": 1_700_000_000}
    facts |= {"metrics": METRICS.get(task, {"bits_per_byte": 1.42})}
    return Card(**(facts | changes))


class Fake:
    """Tokens are words, and one more. A closed `gate` holds the model up in the middle of its work."""

    def __init__(self, task: str, **card) -> None:
        self.card = make_card(task, **card)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def read(self, value: str) -> Asked:
        return Asked(value, len(value.split()) + 1)

    def pause(self) -> None:
        self.entered.release()
        assert self.gate.wait(20)

    def answer(self, questions: Sequence[object], **options) -> list[Answer]:
        raise AssertionError("this fake does not answer at once")

    def decoding(self):
        raise AssertionError("this fake does not complete")


class Translator(Fake):
    """Translates into capitals. `poison` in a text breaks the batch, `mistake` is a mistake in the program."""

    def __init__(self, task: str = "translate", **card) -> None:
        super().__init__(task, **card)
        self.batches: list[list[str]] = []
        self.beams: list[int] = []

    def answer(self, questions: Sequence[str], beam_size: int) -> list[Answer]:
        texts = list(questions)
        self.batches.append(texts)
        self.beams.append(beam_size)
        self.pause()
        if any("poison" in text for text in texts):
            raise RuntimeError("index out of range in self")
        if any("mistake" in text for text in texts):
            raise TypeError("a mistake in the program")
        return [Answer({"text": text.upper()}, len(text.split()) + 1) for text in texts]


class Classifier(Fake):
    """Puts every question in class `a` if what `read` made of it is even, else in `b`.

    A text and an image count by their length, a row by its `age`. `poison` in a text breaks the batch.
    """

    def __init__(self, what: str, **card) -> None:
        super().__init__(**({"task": f"classify_{what}", "form": FORMS[what]} | card))
        self.what = what
        self.batches: list[list[object]] = []

    def read(self, value: object) -> Asked:
        if self.what == "text":
            if not value.strip():
                raise DataError("an empty text has no class; give one that says something")
            words = value.split()
            notes = () if len(words) < 10 else (f"read the first 9 of {len(words)} tokens",)
            return Asked(value, min(10, len(words) + 1), notes)
        if self.what == "image":
            if not value.startswith(b"PNG"):
                raise DataError("not an image of a kind that is read; convert it, or take it away")
            return Asked(value)
        strange = [name for name in value if name not in ("age", "job")]
        if strange:
            raise DataError(f"no column {strange[0]!r}; there are: age, job")
        missing = [name for name in ("age", "job") if value.get(name) is None]
        notes = (f"no value for {', '.join(missing)}: taken as missing",) if missing else ()
        return Asked("-" * int(value.get("age") or 0), 0, notes)

    def answer(self, questions: Sequence[str | bytes]) -> list[Answer]:
        self.batches.append(list(questions))
        self.pause()
        if "poison" in questions:
            raise RuntimeError("index out of range in self")
        return [self.verdict(len(question) % 2) for question in questions]

    def verdict(self, odd: int) -> Answer:
        return Answer({"label": "ab"[odd], "probabilities": {"a": 0.75 - odd / 2, "b": 0.25 + odd / 2}})


FORMS = {
    "text": {"classes": ["a", "b"]},
    "image": {"classes": ["a", "b"], "size": [8, 8, 3]},
    "table": {
        "classes": ["a", "b"],
        "columns": [
            {"name": "age", "kind": "number"},
            {"name": "job", "kind": "category", "categories": ["cook", "smith"]},
        ],
    },
}


class Recommender(Fake):
    """Recommends the films that come next in the alphabet, the nearest with the highest score."""

    def __init__(self, **card) -> None:
        super().__init__("recommend", **({"form": {"items": list("abcdefgh")}} | card))

    def read(self, value: list) -> Asked:
        known = [str(name) for name in value if str(name) in "abcdefgh"]
        if value and not known:
            raise DataError(f"no item {str(value[0])!r}; name items that were in the training data")
        notes = (f"passed over {len(value) - len(known)} unknown items",) if len(known) < len(value) else ()
        return Asked(known, len(known) + 1, notes)

    def answer(self, questions: Sequence[list[str]], k: int, exclude_seen: bool) -> list[Answer]:
        return [Answer({"recommendations": self.next(seen, k, exclude_seen)}) for seen in questions]

    def next(self, seen: list[str], k: int, exclude_seen: bool) -> list[dict]:
        letters = "abcdefgh" * 2
        after = letters[letters.index(seen[-1]) + 1 :][:8] if seen else letters[:8]
        found = [name for name in after if not (exclude_seen and name in seen)]
        return [{"item": name, "score": 1 / (place + 1)} for place, name in enumerate(found[:k])]


class Writer(Fake):
    """Continues every prompt with ` 1 2 3 …`, one number a step, at least `step_s` apart."""

    def __init__(self, step_s: float = 0.0, task: str = "generate", **card) -> None:
        super().__init__(task, **card)
        self.step_s = step_s
        self.steps: list[list[str]] = []

    def decoding(self) -> "Counting":
        return Counting(self)


class Chatter(Writer):
    """Answers every chat as a `Writer` does; a token is a word. The oldest exchanges give way to `room`."""

    def __init__(self, step_s: float = 0.0, **card) -> None:
        super().__init__(step_s, "dialogue", **card)
        self.asked: list[list[dict]] = []

    def read(self, value: dict) -> Asked:
        messages, notes = value["messages"], ()
        if messages[-1]["role"] != "user":
            raise DataError("the last must be of user")
        self.asked.append(messages)
        while value["room"] is not None and count_words(messages) > value["room"] and len(messages) > 2:
            messages, notes = messages[2:], ("left out the oldest exchanges",)
        return Asked(messages[-1]["content"], count_words(messages), notes)


def count_words(messages: Sequence[dict]) -> int:
    return sum(len(message["content"].split()) + 1 for message in messages)


class Counting:
    """The running batch of a `Writer`."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.rows: list[tuple[Prompt, int]] = []

    def join(self, prompts: Sequence[Prompt]) -> list[Piece]:
        if any("poison" in prompt.content for prompt in prompts):
            raise RuntimeError("index out of range in self")
        self.rows += [(prompt, 1) for prompt in prompts]
        return [self.piece(prompt, 1) for prompt in prompts]

    def step(self) -> list[Piece]:
        self.writer.steps.append([prompt.content for prompt, _ in self.rows])
        self.writer.pause()
        time.sleep(self.writer.step_s)
        if any("trap" in prompt.content for prompt, _ in self.rows):
            raise RuntimeError("probability tensor contains nan")
        self.rows = [(prompt, count + 1) for prompt, count in self.rows]
        return [self.piece(prompt, count) for prompt, count in self.rows]

    def leave(self, rows: Sequence[int]) -> None:
        self.rows = [row for index, row in enumerate(self.rows) if index not in rows]

    def piece(self, prompt: Prompt, count: int) -> Piece:
        if str(count) in prompt.stop:
            return Piece("", "stop")
        return Piece(f" {count}", "length" if count == prompt.max_tokens else None)


class Running:
    """A server on a free port of this machine, and a client of it."""

    def __init__(self, server: Server, url: str, client: httpx.Client) -> None:
        self.server, self.url, self.client = server, url, client
        self.engine = server.engine

    def post(self, path: str, body: object, **options) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    @contextmanager
    def sent(self, path: str, body: object) -> Iterator[None]:
        """Send a request whose client leaves, without having read the answer, when the block ends."""
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        with closing(connection):
            yield

    def metric(self, line: str) -> float:
        """The value of one sample of /metrics, 0 when it is not there."""
        for text in self.client.get("/metrics").text.splitlines():
            name, _, value = text.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0


@contextmanager
def running(answerer: object, **limits) -> Iterator[Running]:
    """Serve `answerer` over real HTTP while the block runs."""
    with bind("127.0.0.1", 0) as sock:
        server = make_server(answerer, sock, Limits(**limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            with httpx.Client(base_url=url_of(sock), timeout=30) as client:
                yield Running(server, url_of(sock), client)
        finally:
            if isinstance(answerer, Fake):
                answerer.gate.set()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def eventually(condition, timeout_s: float = 10.0) -> None:
    """Wait until `condition()` holds; fail when it does not in time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.005)
