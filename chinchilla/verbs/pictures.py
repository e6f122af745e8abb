"""The data of image classification: images of one size, cut into patches, each with its class."""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from chinchilla.config.run import Run
from chinchilla.config.shape import ImageStem, Patch
from chinchilla.data.classes import Classes, make_classes
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_batches import PictureBatches, Views
from chinchilla.data.picture_classes import PictureClasses, colours_of
from chinchilla.data.picture_split import ImageSplit, split_pictures
from chinchilla.data.pictures import Pictures
from chinchilla.planning.search import Facts
from chinchilla.tasks.classify import Classify
from chinchilla.tasks.task import Task
from chinchilla.verbs.prepared import Kind, Prepared, Tell

log = logging.getLogger("chinchilla")

PATCHES: tuple[Patch, ...] = (2, 4, 8, 16)
MOST_PATCHES = 100
"""Of an image: the smallest patches of which it has no more are taken. Attention grows with their square."""

SPECIALS = 3
"""A shape names three special tokens, which its vocabulary has to hold even where it has none."""


def _split(run: Run) -> ImageSplit[Pictures]:
    """The images in three parts, of a size that whole patches fill."""
    asked = run.images.size
    side = (asked, asked) if isinstance(asked, int) else asked
    split = split_pictures(run.data, run.seed, None if side is None else Size(*side, 3))
    size, patch = split.train.size, _patch(run, split.train.size)
    height, width = (-(-length // patch) * patch for length in size[:2])
    wanted = Size(height, width, 1 if _is_grey(split.train) else size.channels)
    if wanted[:2] != size[:2]:
        log.info("images are brought from %d x %d to %d x %d, which patches of %d fill", *size[:2], *wanted[:2], patch)
    parts = {name: getattr(split, name).resized(wanted) for name in ("train", "valid", "test")}
    return replace(split, **parts)


def _patch(run: Run, size: Size) -> Patch:
    """The recipe's patch, or the smallest of which an image has few."""
    if run.images.patch is not None:
        return run.images.patch
    fitting = (patch for patch in PATCHES if -(-size.height // patch) * -(-size.width // patch) <= MOST_PATCHES)
    return next(fitting, PATCHES[-1])


def _is_grey(pictures: Pictures) -> bool:
    """Whether red, green and blue are alike everywhere: a size asked for says nothing of channels."""
    return all((image == image[..., :1]).all() for image in pictures.images)


def _examples(run: Run, split: ImageSplit[Pictures]) -> tuple[tuple[Any, str, str], ...]:
    test = split.test
    named = zip(test.images, test.labels, test.names, strict=True)
    return tuple((image, test.classes[label], name) for image, label, name in named)


def _prepare(run: Run, split: ImageSplit[Pictures], task: Task, test: tuple[Any, ...], tell: Tell) -> Prepared:
    pictures = split.train
    labels = (pictures.classes[label] for part in (split.train, split.valid, split.test) for label in part.labels)
    classes = make_classes(Counter(labels), run.data)
    stem = ImageStem(**pictures.size._asdict(), patch=_patch(run, pictures.size), pooled=True)
    codec = PictureClasses(classes, pictures.size, colours_of(pictures))
    tell(f"{len(classes.names)} classes; images of {stem.height} x {stem.width} in patches of {stem.patch}")

    def make(views: Views, labels: int, seed: int, like: PictureBatches | None = None) -> PictureBatches:
        return PictureBatches(views, codec, stem.num_positions, labels, seed, like)

    facts = Facts(
        task=run.task,
        vocab_size=max(SPECIALS, len(classes.names)),
        unique_tokens=len(pictures),
        num_examples=len(pictures),
        mean_source_len=stem.num_positions,
        mean_target_len=0,
        max_len=stem.num_positions,
        bytes_per_token=pictures.images[0].nbytes,
        labels_per_row=1,
        num_classes=len(classes.names),
        stem=stem,
    )
    train, valid = Views(_numbered(pictures, classes), run.images), Views(_numbered(split.valid, classes))
    counts = classes.counts(train.pictures.labels)
    return Prepared(run, task, codec, train, valid, test, stem.num_positions, facts, make, class_counts=counts)


def _numbered(pictures: Pictures, classes: Classes) -> Pictures:
    """The images with labels that are indices into `classes`."""
    numbers = np.array([classes.number(name) for name in pictures.classes])
    return replace(pictures, labels=numbers[pictures.labels], classes=classes.names)


CLASSIFY_IMAGE = Kind(
    split=_split,
    prepare=_prepare,
    examples=_examples,
    make_task=lambda run: Classify("classify_image"),
    open_codec=PictureClasses.open,
)
