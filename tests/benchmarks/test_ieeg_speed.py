"""Speed of the iEEG foundation model, its default size with random weights, on one thread.

By hand: pytest tests/benchmarks/test_ieeg_speed.py -n 0 -o addopts= -s

A forecast is 0.5 s at 250 Hz from 1 s of context. Past trials are read once, which the first forecast pays for.
Bars are of the least CPU time of a few repeats: beside other work the median tells of that work. Shape checks
are off here.
"""

import math
import time

import pytest
import torch
from jaxtyping import config

from stimopt.forecaster import Context, Trials
from stimopt.models.ieeg_course import QuickCourse, course
from stimopt.models.ieeg_foundation import FoundationModel
from stimopt.models.ieeg_ongoing import fit_ongoing
from stimopt.models.ieeg_parts import OngoingForecaster
from stimopt.models.ieeg_sourced import CIRCUITS
from stimopt.models.ieeg_sources import Sources, Tissue, effects, load_sources, side_by_side, trains_of
from stimopt.models.ieeg_transformer import IeegTransformer, TransformerSize
from stimopt.montage import Contact, monopolar
from stimopt.response import Response
from stimopt.stimulus import pulse_train
from stimopt.tensors import concatenate, generator, map_tensors

RATE_HZ, PAST = 250.0, 20
ONE_BAR_S, MANY_BAR_S = 0.05, 3.0
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def as_in_use():
    """One thread, and none of the shape checks that only tests pay for."""
    before = torch.get_num_threads(), config.jaxtyping_disable
    torch.set_num_threads(1)
    config.update("jaxtyping_disable", True)
    yield
    torch.set_num_threads(before[0])
    config.update("jaxtyping_disable", before[1])


@pytest.fixture(scope="module")
def model():
    return FoundationModel(TransformerSize(), IeegTransformer(TransformerSize(), generator(0, "speed")).state_dict())


def implant(channels):
    """Shafts of eight contacts, 3.5 mm apart, 20 mm between shafts."""
    contacts = [
        Contact(
            f"S{n // 8}x{n % 8}", (20.0 * (n // 8 % 8), 3.5 * (n % 8), 20.0 * (n // 64)), 0.05, "depth", f"S{n // 8}"
        )
        for n in range(channels)
    ]
    return monopolar(contacts)


def stimuli(montage, rows):
    """One a row, over all neighbouring pairs."""
    pairs = montage.neighbour_pairs()
    trains = [
        pulse_train(
            montage, pairs[n % len(pairs)], amplitude_ma=1 + n / rows, frequency_hz=50.0, pulses=5, onset_s=0.02
        )
        for n in range(rows)
    ]
    return concatenate([map_tensors(train, lambda x: x[None]) for train in trains])


def patient(model, channels, past=PAST):
    """A forecaster with its past, and the window of now."""
    montage, source = implant(channels), generator(1, channels)

    def signal(*shape):
        return 50 * torch.randn(*shape, generator=source)

    rest = Context(montage, signal(4, channels, 250), RATE_HZ)
    trials = None
    if past:
        answers = Response(montage, signal(past, channels, 125), RATE_HZ)
        trials = Trials(Context(montage, signal(past, channels, 250), RATE_HZ), stimuli(montage, past), answers)
    now = Context(montage, signal(channels, 250), RATE_HZ)
    return model.for_patient(montage, rest, trials, samples=125), now, rest


def least_s(work, repeats=5):
    """Least CPU time of some repeats, after one to warm up."""
    spans = []
    with torch.no_grad():
        work()
        for _ in range(repeats):
            begin = time.process_time()
            work()
            spans.append(time.process_time() - begin)
    return min(spans)


@pytest.mark.benchmark(group="forecast")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [1, 256])
def test_a_forecast_of_64_channels_after_20_trials(benchmark, model, rows, dtype):
    forecaster, now, _ = patient(model, 64)
    asked = stimuli(now.montage, rows).to(torch.zeros((), dtype=dtype))
    with torch.no_grad():
        benchmark.pedantic(lambda: forecaster.forecast(now, asked), rounds=5, warmup_rounds=1)
    span = least_s(lambda: forecaster.forecast(now, asked))
    print(f"\n{rows} stimuli, {dtype}: {1e3 * span:.0f} ms of CPU, {rows / span:.0f} forecasts a second")
    assert span < (ONE_BAR_S if rows == 1 else MANY_BAR_S)


@pytest.mark.benchmark(group="ongoing")
@pytest.mark.parametrize("rows", [1, 256])
def test_a_forecast_with_the_patients_own_of_ongoing_activity(benchmark, model, rows):
    """As `ongoing` and `blended` ask: a second pass without a stimulus, and a free run."""
    plain, now, rest = patient(model, 64)
    begin = time.process_time()
    forecaster = OngoingForecaster(plain, fit_ongoing(plain, rest))
    fit_s, asked = time.process_time() - begin, stimuli(now.montage, rows).to(torch.zeros(()))
    with torch.no_grad():
        benchmark.pedantic(lambda: forecaster.forecast(now, asked), rounds=5, warmup_rounds=1)
    span = least_s(lambda: forecaster.forecast(now, asked))
    print(f"\n{rows} stimuli: {1e3 * span:.0f} ms of CPU; fitted in {fit_s:.1f} s")
    assert span < (ONE_BAR_S if rows == 1 else MANY_BAR_S)


@pytest.mark.benchmark(group="sources")
def test_many_effects_of_64_channels_by_eight_circuits(benchmark):
    """What `adapt: sources` pays for beside its blend."""
    model, montage = load_sources(), implant(64)
    tissue = Tissue(montage.contact_position_mm.float()[None], montage.channel_matrix.float()[None])
    own = model.begun(map_tensors(tissue, lambda x: x.expand(CIRCUITS, -1, -1)), generator(0, "speed"))
    sources, asked = Sources(model, own, tissue, torch.ones(64)), stimuli(montage, 256).to(torch.zeros(()))
    with torch.no_grad():
        benchmark.pedantic(lambda: sources.effect(asked, RATE_HZ, 125), rounds=5, warmup_rounds=1)
    span = least_s(lambda: sources.effect(asked, RATE_HZ, 125))
    print(f"\n256 stimuli: {1e3 * span:.0f} ms of CPU")
    assert span < MANY_BAR_S / 2


@pytest.mark.benchmark(group="first forecast")
def test_the_first_forecast_reads_the_past(benchmark, model):
    asked = stimuli(implant(64), 1)

    def fresh():
        return (patient(model, 64),), {}

    with torch.no_grad():
        benchmark.pedantic(lambda it: it[0].forecast(it[1], asked), setup=fresh, rounds=3)


@pytest.mark.benchmark(group="gradient")
@pytest.mark.parametrize("rows", [1, 16])
def test_a_gradient_in_the_stimulus(benchmark, model, rows):
    forecaster, now, _ = patient(model, 64)
    asked = stimuli(now.montage, rows)

    def slope():
        asked.amplitude_ma.requires_grad_()
        return torch.autograd.grad(forecaster.forecast(now, asked).mean.square().sum(), asked.amplitude_ma)

    assert benchmark.pedantic(slope, rounds=3, warmup_rounds=1)[0].isfinite().all()


@pytest.mark.benchmark(group="channels")
def test_the_cost_is_linear_in_channels_where_they_hear_hubs_alone(benchmark, model):
    """From 128 channels on, where fixed costs no longer matter; all of these use hubs alone, which begins beyond 64."""
    counts, spans = (96, 128, 192, 256, 384, 512), []
    for channels in counts:
        forecaster, now, _ = patient(model, channels)
        asked = stimuli(now.montage, 4).to(torch.zeros(()))
        spans.append(least_s(lambda f=forecaster, now=now, asked=asked: f.forecast(now, asked), repeats=3))
        print(f"\n{channels} channels: {1e3 * spans[-1] / 4:.1f} ms a stimulus", end="")
    size, cost = (torch.tensor(x, dtype=torch.float64).log() for x in (counts, spans))
    exponent = float(((size - size.mean()) * (cost - cost.mean())).sum() / (size - size.mean()).square().sum())
    print(f"\ncost grows with channels to the power of {exponent:.2f}")
    benchmark.pedantic(lambda: forecaster.forecast(now, asked), rounds=1)
    assert math.isfinite(exponent)
    assert exponent < 1.25


def test_a_step_of_a_search_for_sources_takes_half_of_what_plain_steps_take(benchmark):
    """Sixteen circuits of the shipped size, sixty stimuli each, and a gradient backwards, as fits of twenty trials."""
    model, montage = load_sources(), implant(16)
    place, read = montage.contact_position_mm.float(), montage.channel_matrix.float()
    tissue = Tissue(place.expand(16, -1, -1), read.expand(16, -1, -1))
    own = {n: v.requires_grad_() for n, v in model.begun(tissue, generator(0, "speed")).items()}
    trains = side_by_side(trains_of(stimuli(montage, 60).to(torch.zeros(())), 125), 16)
    quick = QuickCourse()

    def taken(play):
        begun = time.process_time()
        effects(model.shared, own, tissue, trains, play=play).square().sum().backward()
        return time.process_time() - begun

    both = [(taken(course), taken(quick)) for _ in range(4)]
    plain_s, quick_s = (min(times) for times in zip(*both, strict=True))
    benchmark.extra_info["quick over plain"] = quick_s / plain_s
    print(f"plain {plain_s:.3f} s, quick {quick_s:.3f} s of CPU: {quick_s / plain_s:.2f}")
    benchmark.pedantic(taken, args=(quick,), rounds=3)
    assert quick_s < 0.5 * plain_s
