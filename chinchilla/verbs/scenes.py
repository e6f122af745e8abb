"""The data of detection: images in one frame, cut into patches, with boxes."""

from collections import Counter
from typing import Any

from chinchilla.config.errors import DataError
from chinchilla.config.run import Run
from chinchilla.config.shape import ImageStem, Patch
from chinchilla.data.boxes import Scenes
from chinchilla.data.classes import Classes
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_boxes import Framed, PictureBoxes, SceneBatches
from chinchilla.data.picture_classes import colours_of
from chinchilla.data.picture_split import ImageSplit, split_scenes
from chinchilla.planning.search import Facts
from chinchilla.tasks.detect import Detect, Example
from chinchilla.tasks.task import Task
from chinchilla.verbs.pictures import SPECIALS
from chinchilla.verbs.prepared import Kind, Prepared, Tell

PATCHES: tuple[Patch, ...] = (8, 16)
MOST_PATCHES = 400
"""Of an image: the smallest patches of which it has no more are taken. Attention grows with their square."""


def _split(run: Run) -> ImageSplit[Scenes]:
    """The images in three parts, in a frame that whole patches fill."""
    asked = run.images.size
    if asked is None:
        size = split_scenes(run.data, run.seed).train.size
    else:
        size = Size(*((asked, asked) if isinstance(asked, int) else asked), 3)
    patch = _patch(run, size)
    return split_scenes(
        run.data,
        run.seed,
        size._replace(height=-(-size.height // patch) * patch, width=-(-size.width // patch) * patch),
    )


def _patch(run: Run, size: Size) -> Patch:
    """The recipe's patch, or the smallest of which an image has few."""
    if run.images.patch is not None:
        return run.images.patch
    fitting = (patch for patch in PATCHES if -(-size.height // patch) * -(-size.width // patch) <= MOST_PATCHES)
    return next(fitting, PATCHES[-1])


def _examples(run: Run, split: ImageSplit[Scenes]) -> tuple[Example, ...]:
    test = split.test
    rows = zip(test.images, test.sizes, test.boxes, test.labels, test.names, strict=True)
    return tuple(
        Example(Framed(image, int(size[0]), int(size[1])), boxes, labels, name)
        for image, size, boxes, labels, name in rows
    )


def _prepare(run: Run, split: ImageSplit[Scenes], task: Task, test: tuple[Any, ...], tell: Tell) -> Prepared:
    scenes = split.train
    counts = Counter(int(label) for labels in scenes.labels for label in labels)
    if not counts:
        raise DataError(f"{run.data.train}: there is no box to learn from")
    stem = ImageStem(**scenes.size._asdict(), patch=_patch(run, scenes.size), pooled=True)
    codec = PictureBoxes(Classes(names=scenes.classes), scenes.size, colours_of(scenes))
    tell(
        f"{len(scenes.classes)} classes, {sum(counts.values()):,} boxes; frames of {stem.height} x {stem.width} pixels"
    )

    def make(part: Scenes, labels: int, seed: int, like: SceneBatches | None = None) -> SceneBatches:
        return SceneBatches(part, codec, labels, seed, run.images.flip and like is None, like)

    facts = Facts(
        task=run.task,
        vocab_size=max(SPECIALS, len(scenes.classes)),
        unique_tokens=sum(counts.values()),
        num_examples=len(scenes),
        mean_source_len=stem.num_positions,
        mean_target_len=0,
        max_len=stem.num_positions,
        beam_size=1,
        bytes_per_token=scenes.images[0].nbytes * len(scenes) / sum(counts.values()),
        labels_per_row=sum(counts.values()) / len(scenes),
        num_classes=len(scenes.classes),
        stem=stem,
        boxes=True,
    )
    return Prepared(run, task, codec, scenes, split.valid, test, stem.num_positions, facts, make)


DETECT = Kind(
    split=_split,
    prepare=_prepare,
    examples=_examples,
    make_task=lambda run: Detect(),
    open_codec=PictureBoxes.open,
)
