import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from chinchilla.config.estimate import Estimate
from chinchilla.config.run import Budget
from chinchilla.config.shape import Shape

GOOD = {"vocab_size": 500, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 64}


@pytest.mark.parametrize(("encoder", "decoder"), [(1, 0), (0, 1), (2, 3)])
def test_an_encoder_a_decoder_or_both_make_a_shape(encoder, decoder):
    shape = Shape(**GOOD, num_encoder_layers=encoder, num_decoder_layers=decoder)
    assert Shape.model_validate_json(shape.model_dump_json()) == shape


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_decoder_layers": 0}, "needs an encoder or a decoder layer"),
        ({"num_encoder_layers": -1}, "cannot be negative"),
        ({"num_heads": 4, "num_kv_heads": 3}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"num_heads": 2, "num_kv_heads": 4}, "must be a multiple"),
        ({"head_dim": 7}, "rotary positions need an even head_dim, not 7"),
        ({"dim": 0}, "greater than 0"),
        ({"vocab_size": -1}, "greater than 0"),
        ({"attention": "sparse"}, "'full', 'block' or 'gated'"),
        ({"hidden": 3}, "Extra inputs"),
        ({"rope_base": float("nan")}, "finite number"),
    ],
)
def test_an_impossible_shape_is_refused(changed, message):
    with pytest.raises(ValidationError, match=message):
        Shape(**(GOOD | {"num_decoder_layers": 1} | changed))


def test_an_odd_head_is_fine_without_rotary_positions():
    assert Shape(**(GOOD | {"head_dim": 7}), num_decoder_layers=1, position="learned").head_dim == 7


def test_a_shape_cannot_be_changed():
    shape = Shape(**GOOD, num_decoder_layers=1)
    with pytest.raises(ValidationError, match="frozen"):
        shape.dim = 64  # type: ignore[misc]  # frozen, which is what is tested


@given(p50=st.floats(0, 1e200), spread=st.floats(0, 1e3))
def test_an_estimate_lies_inside_its_spread(p50, spread):
    found = Estimate.around(p50, spread, "s", "law")
    assert found.p10 <= found.p50 == p50 <= found.p90
    assert found.p90 == pytest.approx(found.p10 * (1 + spread) ** 2)


@pytest.mark.parametrize("quantiles", [(2, 1, 3), (1, 3, 2), (3, 2, 1)])
def test_quantiles_out_of_order_are_refused(quantiles):
    with pytest.raises(ValidationError, match="quantiles out of order"):
        Estimate(p10=quantiles[0], p50=quantiles[1], p90=quantiles[2], unit="s", source="law")


def test_an_estimate_is_never_bare_nor_infinite():
    with pytest.raises(ValidationError, match="source"):
        Estimate(p10=1, p50=1, p90=1, unit="s")  # type: ignore[call-arg]  # no source
    with pytest.raises(ValidationError, match="'measured', 'law', 'datasheet' or 'guess'"):
        Estimate(p10=1, p50=1, p90=1, unit="s", source="hope")  # type: ignore[arg-type]  # none of the sources
    with pytest.raises(ValidationError, match="finite"):
        Estimate(p10=1, p50=1, p90=float("inf"), unit="s", source="law")
    with pytest.raises(ValidationError, match="out of order"):
        Estimate.around(-1, 0.5, "s", "law")


@pytest.mark.parametrize("given_", [{}, {"time": 60, "flops": 1e15}])
def test_a_budget_is_exactly_one_thing(given_):
    with pytest.raises(ValidationError, match="give exactly one of time"):
        Budget(**given_)
