"""What a run takes from the model that it starts from."""

import json
import re

import pytest
import torch

from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run
from chinchilla.config.run import Model
from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.data.classes import Classes
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer
from chinchilla.planning.search import Facts
from chinchilla.training.trained import trained
from chinchilla.verbs.transfer import fitting, for_codec, new_model, read_start, told

FREE = Model()
"""Nothing of the shape is fixed."""

TEXTS = ["the cat sat on the mat", "a moon is a stone", "larger than the cat"] * 5


def facts(task: str, **changes) -> Facts:
    common = {
        "task": task, "vocab_size": 300, "unique_tokens": 1000, "num_examples": 100, "mean_source_len": 32,
        "mean_target_len": 32, "max_len": 32, "bytes_per_token": 3.0,
    }  # fmt: skip
    return Facts(**common | changes)


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer.train(TEXTS, "bpe", 300)
    shape = Shape(
        vocab_size=tokenizer.vocab_size, dim=16, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=32,
        num_encoder_layers=2, num_decoder_layers=1, max_len=48,
    )  # fmt: skip
    torch.manual_seed(5)
    write_model(tmp_path / "run" / "model", Transformer(shape), tokenizer.to_json())
    return tmp_path / "run"


def test_a_classifier_takes_the_encoder_and_the_table_and_gets_a_new_head(folder):
    start = read_start(folder)
    shape = start.shape_for(facts("classify_text", num_classes=3, labels_per_row=2.0), FREE)
    assert (shape.num_encoder_layers, shape.num_decoder_layers, shape.num_classes) == (2, 0, 3)
    old, new = start.loaded.model.state_dict(), new_model(shape, 0.0, start, None).state_dict()
    for name, tensor in new.items():
        assert torch.equal(tensor, old[name]) == (name != "head.weight"), name
    assert told(start, shape).endswith("new: head")


def test_a_task_of_the_same_family_takes_everything(folder):
    start = read_start(folder / "model")
    shape = start.shape_for(facts("summarise"), FREE)
    assert shape == start.shape and told(start, shape).endswith("new: nothing")
    assert len(fitting(start, shape)) == len(list(Transformer(shape).named_parameters()))
    assert start.tokenizer().encode("the cat") == Tokenizer.from_json(start.loaded.tokenizer_json).encode("the cat")


def classifier(path, classes, columns=None):
    stem = TableStem(num_numeric=1, cardinalities=(3,)) if columns else None
    shape = Shape(
        vocab_size=8, dim=16, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=32, num_encoder_layers=1,
        num_decoder_layers=0, max_len=8, num_classes=len(classes), stem=stem, tied_embeddings=False,
    )  # fmt: skip
    codec = {"classes": Classes(names=classes).model_dump()} | ({"columns": columns} if columns else {})
    write_model(path, Transformer(shape), extra={"task": "classify_table", "codec": codec})
    return read_start(path), codec


def test_a_head_of_as_many_other_classes_is_new(tmp_path):
    start, codec = classifier(tmp_path / "a", ("ham", "spam"))
    assert told(for_codec(start, codec), start.shape).endswith("new: nothing")
    others = for_codec(start, {"classes": {"names": ("spam", "ham"), "positive": "spam"}})
    assert told(others, start.shape).endswith("new: head")
    assert "head.weight" in trained(new_model(start.shape, 0.0, others, Adapter(rank=2)))


def test_vectors_of_other_columns_are_new(tmp_path):
    number = {"column": "age", "time": False, "part": "value", "knots": [1.0, 2.0], "count": 9}
    columns = {"numbers": [number], "categories": [{"column": "job", "categories": ["cook"]}], "unused": []}
    start, codec = classifier(tmp_path / "a", ("no", "yes"), columns)
    refitted = codec | {"columns": columns | {"numbers": [number | {"knots": [3.0]}]}}
    assert told(for_codec(start, refitted), start.shape).endswith("new: nothing")
    other = codec | {"columns": columns | {"categories": [{"column": "job", "categories": ["smith"]}]}}
    others = for_codec(start, other)
    assert told(others, start.shape).endswith("new: embed")
    with pytest.raises(UsageError, match=r"only a head can be new, and of model\.start .* so would be embed"):
        new_model(start.shape, 0.0, others, Adapter(rank=2))


def test_numbers_keep_the_lines_of_the_model_that_they_start_from(tmp_path):
    number = {"column": "age", "time": False, "part": "value", "knots": [1.0, 2.0], "count": 9}
    columns = {"numbers": [number], "categories": [{"column": "job", "categories": ["cook"]}], "unused": []}
    start, _ = classifier(tmp_path / "a", ("no", "yes"), columns)
    stem = TableStem(num_numeric=1, cardinalities=(3,), pieces=32)
    asked = facts("classify_table").model_copy(update={"stem": stem, "num_classes": 2, "max_len": 3})
    assert start.shape_for(asked, FREE).stem == stem.model_copy(update={"pieces": 0})


@pytest.mark.parametrize("pooled", [False, True])
def test_images_keep_the_stem_of_the_model_that_they_start_from(tmp_path, pooled):
    stem = ImageStem(height=8, width=8, channels=1, pooled=pooled)
    shape = Shape(
        vocab_size=8, dim=16, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=32, num_encoder_layers=1,
        max_len=5, num_classes=3, stem=stem, position="learned",
    )  # fmt: skip
    write_model(tmp_path / "a", Transformer(shape), extra={"task": "classify_image"})
    start, now = read_start(tmp_path / "a"), stem.model_copy(update={"pooled": True})
    asked = {"num_classes": 3, "labels_per_row": 1.0, "max_len": now.num_positions, "stem": now}
    assert start.shape_for(facts("classify_image", **asked), FREE) == shape
    assert told(start, shape).endswith("new: nothing")
    if not pooled:
        # Five patches, and the class token that this model has.
        wide = asked | {"stem": now.model_copy(update={"height": 4, "width": 20}), "max_len": 5}
        with pytest.raises(
            UsageError, match=r"takes 5 positions, and the data's rows have 6; set a larger images\.patch"
        ):
            start.shape_for(facts("classify_image", **wide), FREE)


def test_an_encoder_alone_gets_a_new_decoder(folder, tmp_path):
    shape = read_start(folder).shape_for(facts("classify_text", num_classes=3, labels_per_row=2.0), FREE)
    write_model(tmp_path / "encoder", Transformer(shape))
    start = read_start(tmp_path / "encoder")
    wanted = start.shape_for(facts("translate"), FREE)
    assert (wanted.num_encoder_layers, wanted.num_decoder_layers, wanted.num_classes) == (2, 2, 0)
    assert told(start, wanted).endswith("new: decoder")
    fixed = Model(num_decoder_layers=1)
    start.require_agreement(fixed, "encoder-decoder")
    assert start.shape_for(facts("translate"), fixed).num_decoder_layers == 1
    with pytest.raises(UsageError, match="has no decoder, which generate needs"):
        start.shape_for(facts("generate"), FREE)
    with pytest.raises(UsageError, match=r"has no tokenizer\.json"):
        start.tokenizer()


def test_what_cannot_be_started_from_is_refused_with_the_mend(folder):
    start = read_start(folder)
    with pytest.raises(UsageError, match=r"takes 48 positions, and the data's rows have 64; set model\.max_len=48"):
        start.shape_for(facts("translate", max_len=64), FREE)


@pytest.mark.parametrize(
    "setting",
    [
        {"dim": 32}, {"num_heads": 4}, {"num_kv_heads": 1}, {"ffn_dim": 64}, {"num_encoder_layers": 1},
        {"num_decoder_layers": 2}, {"attention": "gated"}, {"block_len": 8}, {"position": "learned"}, {"norm": "layer"},
        {"activation": "gelu"}, {"qk_norm": True}, {"tied_embeddings": False},
    ],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_settings_that_the_model_does_not_have_are_refused(folder, setting):
    start = read_start(folder)
    (name, value), had = next(iter(setting.items())), start.shape.model_dump()
    start.require_agreement(Model.model_validate({name: had[name], "max_len": 32}), "encoder-decoder")
    told = f"model.{name}: {json.dumps(value)} is asked for, and model.start {folder} brings {json.dumps(had[name])} "
    with pytest.raises(UsageError, match=re.escape(told) + f".*leave model.{name} out"):
        start.require_agreement(Model.model_validate(setting), "encoder-decoder")


def test_each_setting_of_a_shape_is_compared():
    """A setting that is added to `[model]` is one of the shape's, or of those that are told apart."""
    assert set(Model.model_fields) - set(Shape.model_fields) == {"start"}


def test_a_stack_that_the_task_leaves_out_cannot_be_fixed(folder):
    with pytest.raises(UsageError, match=r"num_decoder_layers: 1 is asked for, and .* brings 0 to this task"):
        read_start(folder).require_agreement(Model(num_decoder_layers=1), "encoder")


def test_with_an_adapter_little_is_trained(folder):
    start = read_start(folder)
    shape = start.shape_for(facts("summarise"), FREE)
    model = new_model(shape, 0.0, start, Adapter(rank=2))
    numbers = sum(parameter.numel() for parameter in trained(model).values())
    assert 0 < numbers < 0.4 * sum(parameter.numel() for parameter in model.parameters())
    source = torch.tensor([[5, 6, 7]])
    assert torch.allclose(model.eval()(source, source).hidden, start.loaded.model(source, source).hidden, atol=1e-6)


def test_a_new_head_learns_beside_an_adapter(folder):
    start = read_start(folder)
    shape = start.shape_for(facts("classify_text", num_classes=3, labels_per_row=2.0), FREE)
    names = trained(new_model(shape, 0.0, start, Adapter(rank=2)))
    assert "head.weight" in names and "embed.tokens.weight" not in names
    same = start.shape_for(facts("summarise"), FREE)
    assert not [name for name in trained(new_model(same, 0.0, start, Adapter(rank=2))) if name.startswith("head")]


def test_an_adapter_needs_a_model_to_adapt():
    with pytest.raises(UsageError, match=r"there is no model to adapt; name one in model\.start"):
        load_run(None, ["task=generate", "data.train=a.txt", "budget.time=1m", "adapter.kind=lora"])
