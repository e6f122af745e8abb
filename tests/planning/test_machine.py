"""The roofline: rates between measured products, and a step's time that grows with what it does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.config.errors import BudgetError
from chinchilla.config.machine import Calibration, Machine, MatmulRate, StepTerm
from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch, flops
from chinchilla.planning.machine import compile_time, matmul_rate, newton_schulz_flops, optimizer_time, step_time
from chinchilla.planning.step_model import GRADIENT_UNITS, UPDATE_UNITS, gradient_work, update_work

RATES = {(1024, 128, 512): 4e10, (4096, 256, 1024): 8e10, (512, 256, 8192): 6e10}


def machine(**changes: object) -> Machine:
    matmul = tuple(
        MatmulRate(m=m, k=k, n=n, precision=precision, flops_per_s=rate * factor)
        for precision, factor in (("fp32", 1), ("bf16", 4))
        for (m, k, n), rate in RATES.items()
    )
    settings = {
        "name": "a processor", "device": "cpu", "threads": 2, "memory_bytes": 8 * 10**9, "torch_version": "2",
        "measured_at": "2026-01-01T00:00:00+00:00", "noise": 0.1, "matmul": matmul, "bytes_per_s": 1e10,
        "op_overhead_s": 5e-6, "has_compiler": True,
    }  # fmt: skip
    return Machine(**settings | changes)


def shape(**changes: object) -> Shape:
    sizes = {"vocab_size": 8000, "dim": 256, "num_heads": 4, "num_kv_heads": 4, "head_dim": 64, "ffn_dim": 1024}
    return Shape(**sizes | {"num_encoder_layers": 3, "num_decoder_layers": 3} | changes)


BATCH = Batch(32, 128, 128)


@pytest.mark.parametrize(("sizes", "rate"), list(RATES.items()))
def test_a_measured_product_has_its_measured_rate(sizes: tuple[int, int, int], rate: float) -> None:
    assert matmul_rate(machine(), *sizes, "fp32") == rate
    assert matmul_rate(machine(), *sizes, "bf16") == 4 * rate


@given(st.integers(1, 10**5), st.integers(1, 10**4), st.integers(1, 10**5))
def test_a_rate_never_leaves_the_measured_ones(m: int, k: int, n: int) -> None:
    assert min(RATES.values()) * 0.999 <= matmul_rate(machine(), m, k, n, "fp32") <= max(RATES.values()) * 1.001


def test_a_product_takes_after_its_neighbour() -> None:
    assert matmul_rate(machine(), 1000, 130, 500, "fp32") == pytest.approx(4e10, rel=0.05)
    assert matmul_rate(machine(), 4000, 260, 1000, "fp32") == pytest.approx(8e10, rel=0.05)


def test_an_unmeasured_precision_is_refused() -> None:
    only = tuple(rate for rate in machine().matmul if rate.precision == "fp32")
    with pytest.raises(BudgetError, match=r"bf16.*chinchilla measure"):
        matmul_rate(machine(matmul=only), 1, 1, 1, "bf16")


def test_products_take_at_least_their_flops_at_the_best_rate() -> None:
    found = step_time(shape(), BATCH, machine(), "fp32", "adamw")
    assert found.products_s + found.attention_s >= flops(shape(), BATCH).step / 8e10
    assert found.products_s <= flops(shape(), BATCH).step / 4e10


def test_micro_batches_share_one_update() -> None:
    once = step_time(shape(), BATCH, machine(), "fp32", "muon")
    thrice = step_time(shape(), BATCH, machine(), "fp32", "muon", accumulation=3)
    assert thrice.total_s - thrice.optimizer_s == pytest.approx(3 * (once.total_s - once.optimizer_s))
    assert thrice.optimizer_s == once.optimizer_s


@pytest.mark.parametrize(
    "bigger", [{"dim": 512, "ffn_dim": 2048, "num_heads": 8, "num_kv_heads": 8}, {"num_decoder_layers": 6}]
)
def test_a_larger_model_takes_longer_in_every_part(bigger: dict[str, int]) -> None:
    small, large = (step_time(s, BATCH, machine(), "fp32", "muon") for s in (shape(), shape(**bigger)))
    for part in ("products_s", "attention_s", "traffic_s", "optimizer_s"):
        assert getattr(large, part) > getattr(small, part)


def test_a_slower_memory_costs_traffic_only() -> None:
    fast, slow = (step_time(shape(), BATCH, machine(bytes_per_s=b), "fp32", "adamw") for b in (1e10, 1e9))
    assert slow.products_s == fast.products_s
    assert slow.traffic_s == pytest.approx(10 * fast.traffic_s)


def test_newton_schulz_by_hand() -> None:
    # Three rounds of 2·(4·4·10) for X·Xᵀ, 2·4³ for its square, 2·(4·4·10) for the product with X.
    assert newton_schulz_flops(4, 10) == newton_schulz_flops(10, 4) == 3 * (320 + 128 + 320)


def test_muon_costs_more_than_adamw() -> None:
    assert optimizer_time(shape(), machine(), "muon", "bf16") > optimizer_time(shape(), machine(), "adamw", "bf16")


def test_compiling_takes_a_measured_block_for_each_kind_of_block() -> None:
    known = machine().model_copy(update={"compile_time_s": 40.0})
    alone, both = shape(num_encoder_layers=0), shape(num_encoder_layers=3)
    assert [compile_time(each, known).p50 for each in (alone, both)] == [40, 80]
    assert [compile_time(both, each).source for each in (known, machine())] == ["measured", "guess"]


def test_the_estimate_is_a_wide_guess() -> None:
    found = step_time(shape(), BATCH, machine(), "bf16", "muon")
    estimate = found.estimate()
    assert estimate.source == "guess"
    assert estimate.p50 == found.total_s
    assert estimate.p90 / estimate.p10 == pytest.approx(2.25)


def calibrated(**changes: object) -> Machine:
    terms = {
        name: tuple(StepTerm(kind=kind, unit=unit, unit_s=1e-12) for kind, unit in units.items())
        for name, units in (("gradients", GRADIENT_UNITS), ("update", UPDATE_UNITS))
    }
    settings = {
        "precision": "fp32", "spread": 0.06, "update_spread": 0.06, "clock": "cpu", "waiting": 1.0, "noise": 0.1,
        "num_models": 10, "most_params": 5 * 10**6, "measured_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return machine(calibration=(Calibration(**terms | settings | changes),))


def test_a_fit_is_used_where_there_is_one_and_said() -> None:
    found = step_time(shape(), BATCH, calibrated(), "fp32", "adamw")
    work = gradient_work(shape(), BATCH, "fp32"), update_work(shape(), "adamw", "fp32")
    assert found.total_s == pytest.approx(1e-12 * sum(sum(each.values()) for each in work))
    estimate = found.estimate()
    assert (estimate.source, estimate.p90 / estimate.p50) == ("measured", pytest.approx(1.06))


def test_a_precision_without_a_fit_falls_back_to_the_roofline_and_says_so() -> None:
    found = step_time(shape(), BATCH, calibrated(), "bf16", "adamw")
    assert found == step_time(shape(), BATCH, machine(), "bf16", "adamw")
    assert found.estimate().source == "guess"


@pytest.mark.parametrize("other", [{"dim": 512, "num_decoder_layers": 8}, {"attention": "block"}])
def test_a_shape_unlike_those_that_were_timed_is_a_guess(other: dict[str, object]) -> None:
    found = step_time(shape(**other), BATCH, calibrated(), "fp32", "adamw").estimate()
    assert found.source == "guess"
    assert found.p90 / found.p50 == pytest.approx(1.5)


def test_a_fit_by_the_processors_clock_is_told_in_wall_time() -> None:
    """A machine on which steps waited is thought to make them wait again; it may also be idle."""
    idle, busy = (step_time(shape(), BATCH, calibrated(waiting=w), "fp32", "adamw") for w in (1.0, 2.0))
    assert busy.total_s == pytest.approx(2 * idle.total_s)
    assert busy.products_s / busy.total_s == pytest.approx(idle.products_s / idle.total_s)
    told, alone = busy.estimate(), idle.estimate()
    assert (told.p10, told.p50, told.p90) == pytest.approx((alone.p10, 2 * alone.p50, 2 * alone.p90))
