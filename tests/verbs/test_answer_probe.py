"""The time of an answer by the model itself, on a clock that counts its passes."""

import pytest
from torch import Tensor, nn

from chinchilla.config.shape import Shape
from chinchilla.models.transformer import Stack, Transformer
from chinchilla.planning.latency import TIMED_SPREAD, Request
from chinchilla.verbs.answer_probe import timed_answer

SHAPE = Shape(
    vocab_size=300, dim=32, num_heads=2, num_kv_heads=2, head_dim=16, ffn_dim=64, num_encoder_layers=1,
    num_decoder_layers=2, max_len=64, norm="layer",
)  # fmt: skip
ENCODER_S, DECODER_S, POSITION_S = 5.0, 1.0, 0.1


@pytest.fixture
def clock(monkeypatch):
    """Time stands still but for stacks of layers: 5 s in an encoder, 1 s in a decoder and 0.1 s for each position."""
    now = [0.0]
    run = Stack.forward

    def forward(self: nn.Module, x: Tensor, *rest: object, **named: object) -> Tensor:
        now[0] += (ENCODER_S if len(self.layers) == 1 else DECODER_S) + POSITION_S * x.shape[1]
        return run(self, x, *rest, **named)

    monkeypatch.setattr(Stack, "forward", forward)
    return lambda: now[0]


@pytest.mark.parametrize("beams", [1, 4])
def test_a_translation_is_its_source_and_every_pass_over_all_beams(beams, clock):
    request = Request(20, 12, beams, 40)
    found = timed_answer(Transformer(SHAPE).eval(), request, clock)
    assert found is not None
    assert found.prompt_s == pytest.approx(ENCODER_S + 20 * POSITION_S)
    assert found.token_s == pytest.approx(DECODER_S + POSITION_S)
    assert found.passes == request.passes
    estimate = found.estimate()
    assert estimate.source == "measured"
    assert estimate.p90 == pytest.approx((1 + TIMED_SPREAD) * found.total_s)


@pytest.mark.parametrize("new", [1, 2, 30])
def test_a_completion_is_its_prompt_and_a_pass_for_each_token_but_the_first(new, clock):
    shape = SHAPE.model_copy(update={"num_encoder_layers": 0})
    found = timed_answer(Transformer(shape).eval(), Request(16, new), clock)
    assert found is not None
    assert found.prompt_s == pytest.approx(DECODER_S + 16 * POSITION_S)
    assert found.token_s == pytest.approx(DECODER_S + POSITION_S)
    assert found.total_s == pytest.approx(found.prompt_s + (new - 1) * found.token_s)


def test_an_encoder_alone_is_not_timed():
    alone = SHAPE.model_copy(update={"num_decoder_layers": 0, "num_classes": 3})
    assert timed_answer(Transformer(alone).eval(), Request(5, 0)) is None


def test_a_model_that_ends_its_answers_at_once_is_timed_over_a_whole_one(clock):
    model = Transformer(SHAPE.model_copy(update={"head_bias": True})).eval()
    model.head.bias.data[SHAPE.eos_id] = 100.0
    found = timed_answer(model, Request(20, 12, 1, 40), clock)
    assert found is not None
    assert found.passes == 12
    assert found.token_s == pytest.approx(DECODER_S + POSITION_S)
