"""E-mails: what one says, which belong together, and what people answer to the lines they quote."""

import email
import email.errors
import html
import itertools
import re
from collections.abc import Iterator, Sequence
from email.header import decode_header
from email.message import Message
from pathlib import Path
from typing import NamedTuple

from chinchilla.data.families import families, runs, sketch

_MARKUP = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
_PREFIX = re.compile(r"\s*((re|fwd?|aw|sv)(\[\d+\])?\s*:|\[[^\]]*\])", re.IGNORECASE)
_AS_WINDOWS = {"iso-8859-1": "cp1252", "latin1": "cp1252"}
"""What is sent under these names is, where they disagree, Windows' (the WHATWG Encoding standard)."""

_SIGNATURE = re.compile(r"-- ?$|[-_=.]{5,}")
_QUOTED_TWICE = re.compile(r"\s*>\s*(>|\w{1,4}>)")
_SENTENCES = re.compile(r"[\"'(]?[A-Z].*[.?!][\"')]?")
_NO_TALK = re.compile(r"https?://|\bwrote:|\bwrites:|@|[|{}<>=_\\#$*]|\.{4}")
_QUOTE_CHARS = range(20, 401)
_REPLY_CHARS = range(10, 401)


class Mail(NamedTuple):
    """A mail's subject and text ("" where it has none)."""

    subject: str
    text: str


def read_mail(path: Path) -> Mail:
    """Read a mail: its plain text, or else its HTML without the tags, in whatever encoding it says it is."""
    message = email.message_from_bytes(path.read_bytes())
    texts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in texts if part.get_content_subtype() == "plain"]
    chosen = (plain or texts)[:1]
    return Mail(_header(str(message["subject"] or "")), "".join(map(_text, chosen)))


def threads(mails: Sequence[Mail]) -> list[int]:
    """The first mail of each one's thread: those with the same subject, and near copies (see `sketch`), are one."""
    keys = [[*_subject_key(mail), *sketch(runs(_words(mail.text), 4))] for mail in mails]
    return families(keys)


def replies(text: str) -> Iterator[tuple[str, str]]:
    """Paragraphs that a mail quotes and what it answers to each: whole sentences of ordinary talk, on both sides."""
    lines = itertools.takewhile(lambda line: not _SIGNATURE.match(line), text.splitlines())
    paragraphs = [
        (kind, " ".join(" ".join(line.lstrip("> \t") for line in group).split()))
        for kind, group in itertools.groupby(lines, _line_kind)
        if kind != "blank"
    ]
    for (kind, quote), (next_kind, reply) in itertools.pairwise(paragraphs):
        if (kind, next_kind) == ("quoted", "own") and _talk(quote, _QUOTE_CHARS) and _talk(reply, _REPLY_CHARS):
            yield quote, reply


def _line_kind(line: str) -> str:
    if not line.strip("> \t"):
        return "blank"
    if _QUOTED_TWICE.match(line):
        return "quoted twice"
    return "quoted" if line.lstrip().startswith(">") else "own"


def _talk(text: str, sizes: range) -> bool:
    return len(text) in sizes and bool(_SENTENCES.fullmatch(text)) and not _NO_TALK.search(text)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _subject_key(mail: Mail) -> list[str]:
    """The words of the subject, without "Re:" and the name of a mailing list; none where there are no words."""
    subject = mail.subject
    while prefix := _PREFIX.match(subject):
        subject = subject[prefix.end() :]
    words = " ".join(_words(subject))
    return [words] if words else []


def _header(value: str) -> str:
    try:
        parts = decode_header(value)
    except email.errors.HeaderParseError:
        return value
    return "".join(part if isinstance(part, str) else _decoded(part, charset) for part, charset in parts)


def _text(part: Message) -> str:
    content = part.get_payload(decode=True)
    text = _decoded(content if isinstance(content, bytes) else b"", part.get_content_charset())
    if part.get_content_subtype() == "html":
        text = html.unescape(_MARKUP.sub(" ", text))
        text = "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))
    return text.replace("\r\n", "\n").strip()


def _decoded(raw: bytes, charset: str | None) -> str:
    """The text of bytes: as they say, or else as one of the encodings that are usual; never fails."""
    named = (charset or "utf-8").lower()
    for name in (_AS_WINDOWS.get(named, named), "utf-8", "cp1252"):
        try:
            return raw.decode(name)
        except (LookupError, ValueError):
            continue
    return raw.decode("latin-1")
