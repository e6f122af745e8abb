"""The time of one answer: against the real engine in order of magnitude, and how it grows."""

import time
from collections.abc import Iterator, Sequence, Sized
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import MACHINE, WEB

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.config.run import Limits, Model
from chinchilla.config.shape import Shape
from chinchilla.models.generate import Sampling, complete, translate
from chinchilla.models.transformer import Transformer
from chinchilla.parallel import measure
from chinchilla.planning.bounds import bounds, unfit
from chinchilla.planning.by_law import law_plan
from chinchilla.planning.calls import token_calls
from chinchilla.planning.count import num_params
from chinchilla.planning.latency import OPERATOR, SEARCH, Request, answer_time, new_token
from chinchilla.planning.room import Room
from chinchilla.planning.search import Facts, build, candidates, left_out
from chinchilla.tasks.translate import max_new

HELP = Facts(
    task="translate", vocab_size=8000, unique_tokens=900_000, num_examples=30_000, mean_source_len=100,
    mean_target_len=120, max_len=128, bytes_per_token=3.5,
)  # fmt: skip
ROOM = Room(8 * 10**9, HELP.batch(4096), "fp32", "muon")


def shape(dim: int, layers: int, vocab_size: int = 8000, encoder: bool = True, heads: int = 4) -> Shape:
    return Shape(
        vocab_size=vocab_size, dim=dim, num_heads=heads, num_kv_heads=heads, head_dim=dim // heads, ffn_dim=4 * dim,
        num_encoder_layers=layers if encoder else 0, num_decoder_layers=layers, norm="layer",
    )  # fmt: skip


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and the measures of a machine by CPU time."""
    threads = torch.get_num_threads()
    clock = SimpleNamespace(perf_counter=time.process_time, process_time=time.process_time)
    monkeypatch.setattr(measure, "time", clock)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bytes_per_s() -> float:
    """The memory's bandwidth, which takes a second to measure, and changes less than the processor's speed."""
    return measure.bandwidth("cpu")


def measured_machine(bytes_per_s: float) -> Machine:
    """This machine as it is this second: its speed may double or halve the next."""
    left, right = torch.randn(512, 256), torch.randn(1024, 256)
    product_s = cpu_time(lambda: left @ right.t(), 9)
    rate = MatmulRate(m=512, k=256, n=1024, precision="fp32", flops_per_s=2 * 512 * 256 * 1024 / product_s)
    known = {"op_overhead_s": measure.op_overhead("cpu"), "bytes_per_s": bytes_per_s}
    return MACHINE.model_copy(update=known | {"threads": 1, "matmul": (rate,)})


def cpu_time(call, repeats=3):
    call()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return median(times)


@pytest.mark.parametrize(
    ("built", "request_"),
    [
        (shape(64, 1, 500), Request(8, 8)),
        (shape(256, 3), Request(20, 12, 4, 12)),
        (shape(512, 4, 16_000), Request(12, 8)),
        (shape(256, 4, encoder=False), Request(32, 16)),
    ],
    ids=["smallest", "beams", "wide", "completion"],
)
def test_an_answer_takes_about_as_long_as_the_engine_does(built, request_, one_thread, bytes_per_s):
    """Within a factor of three on any machine; bench/latency_model.py has the errors on one."""
    torch.manual_seed(0)
    model = Transformer(built).eval()
    prompt = torch.randint(4, built.vocab_size, (1, request_.prompt_len))

    def answer() -> Sequence[Sized]:
        if built.num_encoder_layers:
            return translate(model, prompt, None, [request_.new_tokens], request_.beam_size)
        return [complete(model, prompt[0].tolist(), Sampling(request_.new_tokens), frozenset())]

    assert len(answer()[0]) >= request_.new_tokens - 1  # else the two are not of one length
    # Machine and answer by turns, for a change of speed between the two is no error of the prediction's.
    ratios = [answer_time(built, request_, measured_machine(bytes_per_s)).total_s / cpu_time(answer) for _ in range(5)]
    assert 1 / 3 < median(ratios) < 3, ratios


DIMS, DEPTHS, LENGTHS = st.sampled_from([64, 128, 256, 512]), st.integers(1, 12), st.integers(2, 200)


@settings(max_examples=40)
@given(DIMS, DEPTHS, LENGTHS, LENGTHS, st.integers(1, 8), st.booleans())
def test_more_of_anything_takes_longer(dim: int, layers: int, prompt: int, new: int, beams: int, encoder: bool) -> None:
    def took(dim: int, layers: int, prompt: int, new: int, beams: int, vocab_size: int = 8000) -> float:
        return answer_time(shape(dim, layers, vocab_size, encoder), Request(prompt, new, beams), MACHINE).total_s

    base = took(dim, layers, prompt, new, beams)
    assert base > 0
    for more in ((2 * dim, layers, prompt, new, beams), (dim, layers + 1, prompt, new, beams),
                 (dim, layers, prompt + 50, new, beams), (dim, layers, prompt, new + 50, beams),
                 (dim, layers, prompt, new, beams + 1), (dim, layers, prompt, new, beams, 16_000)):  # fmt: skip
        assert took(*more) > base


def test_a_machine_twice_as_good_answers_in_half_the_time() -> None:
    rates = tuple(rate.model_copy(update={"flops_per_s": 2 * rate.flops_per_s}) for rate in MACHINE.matmul)
    changes = {"matmul": rates, "bytes_per_s": 2 * MACHINE.bytes_per_s, "op_overhead_s": MACHINE.op_overhead_s / 2}
    slow, fast = (
        answer_time(shape(256, 3), Request(20, 20, 4), machine).total_s
        for machine in (MACHINE, MACHINE.model_copy(update=changes))
    )
    assert slow == pytest.approx(2 * fast)


def test_the_parts_make_the_whole() -> None:
    answer = answer_time(shape(256, 3), Request(20, 30), MACHINE)
    assert answer.total_s == answer.prompt_s + 30 * answer.token_s
    assert answer.estimate().p50 == answer.total_s
    assert answer.estimate().source == "guess"
    # The prompt's last position gives a decoder's first token.
    alone = answer_time(shape(256, 3, encoder=False), Request(20, 30), MACHINE)
    assert alone.total_s == alone.prompt_s + 29 * alone.token_s


def test_beams_go_on_beyond_the_answer_up_to_the_longest_looked_for() -> None:
    assert Request(20, 30).passes == 30
    assert Request(20, 30, 4).passes == round(SEARCH * 30)
    assert Request(20, 30, 4, 50).passes == round(SEARCH * 30)
    assert Request(20, 30, 4, 33).passes == 33


def test_a_small_models_answer_is_mostly_calls() -> None:
    """What the time of a token rests on, in numbers that can be checked by hand."""
    small, free = shape(64, 2), MACHINE.model_copy(update={"op_overhead_s": 0.0})
    request = Request(20, 20, 4)
    paid, unpaid = (answer_time(small, request, machine) for machine in (MACHINE, free))
    assert paid.token_s - unpaid.token_s == pytest.approx(OPERATOR * 5e-6 * token_calls(small, 4))
    assert unpaid.token_s < 0.2 * paid.token_s
    work = new_token(small, request, MACHINE)
    numbers = 2 * (64 * 3 * 64 + 3 * 64 * 64 + 8 * 64 * 64) + 8000 * 64
    assert work.weights_s == pytest.approx(4 * numbers / MACHINE.bytes_per_s)
    assert work.products_s == pytest.approx(2 * 4 * numbers / 1e11)


def test_time_grows_evenly_with_depth() -> None:
    """What finding the deepest shape within a limit rests on."""
    one, two, ten = (answer_time(shape(256, n), Request(20, 20, 4), MACHINE).total_s for n in (1, 2, 10))
    assert ten == pytest.approx(one + 9 * (two - one))


@pytest.mark.parametrize("request_", [Request(0, 5), Request(5, 0), Request(5, 5, 0), Request(600, 5), Request(5, 600)])
def test_a_request_that_cannot_be(request_: Request) -> None:
    with pytest.raises(UsageError):
        answer_time(shape(64, 1), request_, MACHINE)


def test_an_encoder_alone_answers_in_one_pass() -> None:
    whole = shape(64, 1)
    alone = whole.model_copy(update={"num_decoder_layers": 0, "num_classes": 3})
    found = answer_time(alone, Request(5, 0), MACHINE)
    assert (found.token_s, found.passes) == (0, 0)
    # The encoder's products, without the keys and values that a decoder would want of it.
    assert 0 < found.total_s == found.prompt_s < answer_time(whole, Request(5, 1), MACHINE).prompt_s


def test_a_typical_request_is_a_mean_example() -> None:
    assert HELP.request == Request(25, 30, 4, max_new(25, HELP.max_len))
    assert WEB.request == Request(16, 32)
    short = WEB.model_copy(update={"max_len": 20})
    assert short.request.prompt_len + short.request.new_tokens <= 20


def tried(limits: Limits, fixed: Model | None = None) -> list[Shape]:
    return candidates(HELP, MACHINE, limits, fixed or Model(), 3600, ROOM)


def test_a_limit_on_latency_keeps_out_what_is_slower() -> None:
    free = tried(Limits())
    middle = sorted(answer_time(each, HELP.request, MACHINE).total_s for each in free)[len(free) // 2]
    held = tried(Limits(latency=middle))
    assert held == [each for each in free if answer_time(each, HELP.request, MACHINE).total_s <= middle]
    assert left_out(HELP, MACHINE, Limits(), Model()) == ""
    told = left_out(HELP, MACHINE, Limits(latency=middle), Model())
    assert told.startswith(f"limits.latency {middle:.3g} s rules out ")


def nearest(error: BudgetError) -> float:
    return float(str(error).split("takes about ")[1].split()[0])


@given(st.floats(1e-9, 0.02))
@settings(max_examples=20)
def test_what_is_named_as_nearest_can_be_met_and_nothing_below_it_can(latency: float) -> None:
    try:
        tried(Limits(latency=latency))
    except BudgetError as error:
        named = nearest(error)
        assert "2+2 layers of 128" in str(error)
        assert tried(Limits(latency=named))
        with pytest.raises(BudgetError):
            tried(Limits(latency=named * 0.99))
    else:
        assert latency > answer_time(build(HELP, Model(), 128, 2, 2), HELP.request, MACHINE).total_s


def test_below_the_time_of_one_token_the_message_says_what_a_token_takes() -> None:
    with pytest.raises(
        BudgetError, match=r"limits\.latency is 1e-06 s.* a token: raise it to that, set evaluate\.beam"
    ):
        tried(Limits(latency=1e-6))


def test_limits_that_only_together_cannot_be_met_name_what_the_other_leaves() -> None:
    wide = Model(num_encoder_layers=1, num_decoder_layers=1)
    ladder = [build(HELP, wide, dim, 1, 1) for dim in (128, 256, 384)]
    size, fast = 4 * num_params(ladder[0]) + 1, answer_time(ladder[0], HELP.request, MACHINE).total_s * 0.9
    held_to = bounds(HELP.request, MACHINE, Limits(size=size, latency=fast))
    assert not any(all(bound.holds(each) for bound in held_to) for each in ladder)
    error = unfit(ladder, held_to)
    assert "that may be built" in str(error)  # the latency alone is out of reach
    deep = [build(HELP, wide, 64, 12, 12), build(HELP, wide, 384, 1, 1)]
    smaller, quicker = sorted(deep, key=num_params)
    assert answer_time(quicker, HELP.request, MACHINE).total_s < answer_time(smaller, HELP.request, MACHINE).total_s
    limits = Limits(size=4 * num_params(smaller), latency=answer_time(quicker, HELP.request, MACHINE).total_s)
    error = unfit(deep, bounds(HELP.request, MACHINE, limits))
    assert "the fastest model within limits.size (12+12 layers of 64" in str(error)
    assert nearest(error) == pytest.approx(answer_time(smaller, HELP.request, MACHINE).total_s, rel=0.01)


def test_the_laws_plan_is_the_largest_model_that_answers_in_time() -> None:
    free = law_plan(1e20, WEB, Model(), Limits(), machine=MACHINE)
    whole_s = answer_time(free.shape, WEB.request, MACHINE).total_s
    held = law_plan(1e20, WEB, Model(), Limits(latency=whole_s / 3), machine=MACHINE)
    took_s = answer_time(held.shape, WEB.request, MACHINE).total_s
    assert whole_s / 4 < took_s <= whole_s / 3
    assert num_params(held.shape) < num_params(free.shape)
    assert held.tokens > free.tokens
    assert "within limits.latency" in held.decisions[0].reason
    with pytest.raises(BudgetError, match=r"limits\.latency is 0\.001 s, and the fastest model that may be built"):
        law_plan(1e20, WEB, Model(), Limits(latency=0.001), machine=MACHINE)
    with pytest.raises(UsageError, match=r"limits\.latency"):
        law_plan(1e20, WEB, Model(), Limits(latency=1.0))
