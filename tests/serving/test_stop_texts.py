"""Tokens to text: nothing that was shown is taken back, no stop text is shown, nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from chinchilla.data.tokenizer import TextStream
from chinchilla.serving.text import StoppableText


class Decoder:
    """A tokenizer that only decodes."""

    def __init__(self, decode) -> None:
        self.decode = decode


def decode_bytes(ids: list[int]) -> str:
    """The worst tokenizer: a token is a byte, so that characters come in parts."""
    return bytes(ids).decode("utf-8", errors="replace")


def stoppable(decode, stop=()) -> StoppableText:
    return StoppableText(TextStream(Decoder(decode)), stop)


def run(decode, ids, stop=()) -> tuple[str, bool]:
    stream = stoppable(decode, stop)
    text = ""
    for token in ids:
        text += stream.push(token)
        if stream.stopped:
            return text, True
    return text + stream.finish(), stream.stopped


@given(text=st.text())
def test_the_pieces_are_the_text(text: str):
    assert run(decode_bytes, text.encode()) == (text, False)


@given(ids=st.lists(st.integers(0, 255), max_size=30))
def test_bytes_that_are_no_text_are_not_lost(ids: list[int]):
    text, _ = run(decode_bytes, ids)
    assert text.replace("\ufffd", "") == decode_bytes(ids).replace("\ufffd", "")


@given(text=st.text("ab\u00e9", max_size=40), stop=st.text("ab\u00e9", min_size=1, max_size=4))
def test_one_stop_cuts_where_it_begins(text: str, stop: str):
    assert run(decode_bytes, text.encode(), [stop]) == (text.split(stop)[0], stop in text)


@given(
    text=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    size=st.integers(1, 5),
)
def test_several_stops_cut_at_one_of_them_and_show_none(text: str, stops: list[str], size: int):
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    shown, stopped = run(lambda ids: "".join(pieces[i] for i in ids), range(len(pieces)), stops)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text for stop in stops)
    assert stopped or shown == text
    if stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


def test_text_is_held_back_only_while_it_may_begin_a_stop():
    stream = stoppable(decode_bytes, ["\n\nQ:"])
    assert [stream.push(byte) for byte in b"a\n\nbQ:"] == ["a", "", "", "\n\nb", "Q", ":"]
    assert stream.finish() == ""


def test_a_character_is_shown_when_its_last_byte_is_here():
    stream = stoppable(decode_bytes)
    assert [stream.push(byte) for byte in "é€".encode()] == ["", "é", "", "", "€"]
