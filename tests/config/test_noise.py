"""Noise and changes to images: only where a task has a use for them."""

import pytest

from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run
from chinchilla.config.noise import Noise


def run_of(task: str, *settings: str):
    return load_run(None, [f"task={task}", "data.train=a.tsv", "budget.time=1m", *settings]).run


def test_it_is_off_unless_asked_for():
    noise = run_of("translate").noise
    assert noise == Noise() and not noise.of_texts and not noise.of_tables
    asked = run_of("classify_table", "noise.swap=0.1", "noise.numbers=1.5").noise
    assert asked.of_tables == {"numbers": 1.5, "swap": 0.1}


@pytest.mark.parametrize(
    ("task", "setting", "told"),
    [
        ("translate", "noise.drop=1", "noise.drop: "),
        ("classify_table", "noise.numbers=-1", "noise.numbers: "),
        ("generate", "noise.drop=0.1", r"noise\.drop: generate has no text to vary that it does not predict; leave"),
        ("dialogue", "noise.backoff=0.1", r"noise\.backoff: dialogue has no text"),
        ("translate", "noise.missing=0.1", r"noise\.missing: translate has no table to vary"),
        ("classify_table", "noise.drop=0.1", r"noise\.drop: classify_table has no text"),
        ("recommend", "images.mix=mixup", r"images\.mix: recommend has no images; leave it out"),
        ("detect", "images.crop=0.5", r"images\.crop: detect brings images to a size, mirrors them and nothing else"),
        ("classify_image", "images.crop=0", "images.crop: "),
    ],
)
def test_what_a_task_has_no_use_for_is_refused_before_anything_is_read(task, setting, told):
    with pytest.raises(UsageError, match=told):
        run_of(task, setting)


def test_what_each_task_has_a_use_for_is_taken():
    assert run_of("detect", "images.size=64", "images.flip=true").images.flip
    assert run_of("classify_image", "images.crop=0.5", "images.mix=cutmix").images.crop == 0.5
    for task in ("translate", "summarise", "classify_text"):
        assert run_of(task, "noise.drop=0.1", "noise.backoff=0.1").noise.backoff == 0.1
