"""Operators that Python calls, counted, against torch's profiler."""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from stem_fakes import stem_source
from torch.profiler import ProfilerActivity, profile

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.models.generate import Sampling, complete, translate
from chinchilla.models.transformer import Transformer
from chinchilla.planning.calls import decoder_calls, encoder_calls, token_calls

SMALL = Shape(
    vocab_size=300, dim=32, num_heads=2, num_kv_heads=2, head_dim=16, ffn_dim=64, num_encoder_layers=1,
    num_decoder_layers=2, max_len=64, norm="layer",
)  # fmt: skip

VARIANTS = [
    {},
    {"norm": "rms", "num_encoder_layers": 3},
    {"norm_order": "post", "num_decoder_layers": 3},
    *({"activation": kind} for kind in ("gelu", "swiglu", "silu", "relu")),
    {"attention": "gated", "bias": True},
    {"num_kv_heads": 1, "embed_scale": True},
    {"qk_norm": True},
    {"position": "learned"},
    {"position": "sinusoidal", "norm": "rms", "embed_norm": True},
    {"tied_embeddings": False, "head_bias": True},
]


def called(call: Callable[[], object]) -> int:
    """Operators that were called, those that operators called left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler about its own defaults
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            call()
    events = [event for event in trace.profiler.kineto_results.events() if event.name().startswith("aten::")]
    count, end = 0, -1
    for event in sorted(events, key=lambda event: (event.start_ns(), -event.duration_ns())):
        if event.start_ns() >= end:
            count, end = count + 1, event.start_ns() + event.duration_ns()
    return count


def endless(shape: Shape) -> Transformer:
    """A model that never ends its answers: the end is less likely than something else."""
    torch.manual_seed(0)
    model = Transformer(shape).eval()
    with torch.no_grad():
        model.head.weight[shape.eos_id] = 0
        if model.head.bias is not None:
            model.head.bias[shape.eos_id] = -99
    return model


SOURCE = torch.randint(4, 300, (1, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_calls_of_a_translation_are_those_that_torch_sees(variant: dict[str, object]) -> None:
    shape = SMALL.model_copy(update=variant)
    model = endless(shape)
    with torch.inference_mode():
        assert called(lambda: model.encode(SOURCE)) == encoder_calls(shape)
    for beams in (1, 4):
        two, three = (called(partial(translate, model, SOURCE, None, [n], beams)) for n in (2, 3))
        assert three - two == token_calls(shape, beams)


@pytest.mark.parametrize("variant", VARIANTS[::3], ids=str)
def test_calls_of_a_completion_are_those_that_torch_sees(variant: dict[str, object]) -> None:
    shape = SMALL.model_copy(update=variant | {"num_encoder_layers": 0})
    model = endless(shape)
    greedy = [Sampling(n, temperature=0) for n in (2, 3)]
    two, three = (called(partial(complete, model, [5] * 10, sampling, frozenset())) for sampling in greedy)
    assert three - two == token_calls(shape, 1)


@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize(
    "stem",
    [
        *(ImageStem(height=16, width=8, patch=patch, pooled=pooled) for patch in (2, 8) for pooled in (False, True)),
        TableStem(num_numeric=3, cardinalities=(4, 9)),
        TableStem(num_numeric=2),
        TableStem(num_numeric=3, cardinalities=(4,), pieces=8),
        TableStem(num_numeric=0, cardinalities=(4,)),
    ],
    ids=str,
)
def test_calls_of_a_pass_behind_a_stem_are_those_that_torch_sees(stem: ImageStem | TableStem, position: str) -> None:
    changes = {"num_decoder_layers": 0, "num_classes": 5, "stem": stem, "position": position}
    shape = SMALL.model_copy(update=changes)
    model, source = Transformer(shape).eval(), stem_source(stem, 1)
    with torch.inference_mode():
        assert called(lambda: model.encode(source)) == encoder_calls(shape)


def test_a_layer_with_a_source_has_more_to_call() -> None:
    alone = SMALL.model_copy(update={"num_encoder_layers": 0})
    assert decoder_calls(SMALL) - decoder_calls(alone) == 2 * 11
