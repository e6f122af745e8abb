"""The codec of images: colours of the training data, questions in every form, and what a model folder keeps of it."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from chinchilla.config.errors import DataError, FaultError
from chinchilla.data.classes import Classes
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_classes import PictureClasses, colours_of
from chinchilla.data.pictures import Pictures
from chinchilla.data.rows import MalformedError

RNG = np.random.default_rng(3)
CLASSES = Classes(names=("dark", "light"), positive="light")


def some(count=2000, size=(6, 5, 3)):
    return Pictures(
        RNG.integers(0, 200, (count, *size), dtype=np.uint8), np.zeros(count, np.int64), ("a",), ("",) * count
    )


def make(size=(6, 5, 3)):
    return PictureClasses(CLASSES, Size(*size), colours_of(some(size=size)))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return file.getvalue()


def test_colours_are_those_of_all_pixels():
    given = some()
    found = colours_of(given)
    pixels = given.images.reshape(-1, 3) / 255
    assert np.allclose(found.means, pixels.mean(0)) and np.allclose(found.stds, pixels.std(0))
    given.images[..., 1] = 7
    assert colours_of(given).stds[1] == 1.0


def test_a_file_its_bytes_and_its_pixels_are_the_same_question(tmp_path):
    codec, pixels = make(), some(1).images[0]
    path = tmp_path / "a.png"
    path.write_bytes(png(pixels))
    read = [codec.read_question(form).question for form in (pixels, path, path.read_bytes())]
    assert all((each == pixels).all() for each in read)
    ((places, inputs),) = codec.batches([pixels, path, path.read_bytes()])
    assert places == [0, 1, 2]
    means, stds = np.array(codec.colours.means), np.array(codec.colours.stds)
    wanted = ((pixels / 255 - means) / stds).transpose(2, 0, 1)
    assert inputs["source"].shape == (3, 3, 6, 5) and inputs["source"].dtype == torch.float32
    assert np.allclose(inputs["source"], wanted, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [(12, 10, 3), (12, 10, 1), (6, 5, 1), (6, 5, 3)])
def test_images_are_brought_to_the_models_size_and_channels(given, channels):
    codec = make((6, 5, channels))
    pixels = np.full(given, 90, np.uint8)
    for form in (pixels, png(pixels)):
        assert (codec.read_question(form).question == np.full((6, 5, channels), 90)).all()


def test_many_images_go_through_in_pieces():
    codec = PictureClasses(CLASSES, Size(256, 256, 1), colours_of(some(4, (256, 256, 1))))
    images = list(some(11, (256, 256, 1)).images)
    pieces = list(codec.batches(images))
    assert [places for places, _ in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert list(codec.batches([])) == []


def test_what_is_no_image_is_refused_and_a_text_names_no_file(tmp_path):
    codec, path = make(), tmp_path / "a.png"
    with pytest.raises(DataError, match=r"a\.png: no such file"):
        codec.read_question(path)
    path.write_bytes(png(some(1).images[0])[:60])
    with pytest.raises(DataError, match=r"a\.png: a damaged image"):
        codec.read_question(path)
    with pytest.raises(MalformedError, match="not an image of a kind that is read"):
        codec.read_question(b"hello")
    path.write_bytes(png(some(1).images[0]))
    with pytest.raises(MalformedError, match="no image, but str"):
        codec.read_question(str(path))


def test_a_model_folder_keeps_all_of_it():
    codec = make()
    again = PictureClasses.open(json.loads(json.dumps(codec.settings)), None, "model")
    assert (again.classes, again.size, again.colours) == (codec.classes, codec.size, codec.colours)
    assert codec.tokenizer_json is None
    assert codec.form == {"classes": ["dark", "light"], "size": [6, 5, 3]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": [6, 5]}, "codec.size"),
        ({"size": [6, 0, 3]}, "codec.size"),
        ({"size": "6x5"}, "codec.size"),
        ({"means": None}, "codec"),
        ({"means": [0.1, 0.2]}, "codec.means"),
        ({"stds": [0.1, 0.0, 0.3]}, "codec.stds"),
        ({"stds": [0.1, float("nan"), 0.3]}, "codec"),
        ({"classes": {"names": "ab"}}, "codec.classes"),
    ],
)
def test_damaged_settings_are_named(changes, named):
    with pytest.raises(FaultError, match=rf"model/config\.json: {named}"):
        PictureClasses.open(json.loads(json.dumps(make().settings)) | changes, None, "model")
