"""What is seen, heard or felt arrives at its own region: late, in volleys, and in the window where it is due."""

import math
from dataclasses import replace

import pytest
import torch

from stimopt.errors import ConfigError, ShapeError, StimulusError
from stimopt.simulators import Twin, jansen_rit_patient
from stimopt.simulators.entry import Entry
from stimopt.simulators.senses import LATENCY_S, VOLLEY_SPIKES, Pathway, Senses, declare_senses
from stimopt.stimulus import Sensory, Stimulus, no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator, map_tensors
from stimopt.testing import check_system

REGIONS = torch.zeros(5, dtype=torch.float64)
V1, A1, S1 = 2, 0, 4


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def senses() -> Senses:
    places = {"visual": V1, "auditory": A1, "tactile": S1}
    return declare_senses({m: Pathway(region, LATENCY_S[m]) for m, region in places.items()}, REGIONS)


def felt(modality: str = "visual", **changes: float | list[float]) -> Sensory:
    plain = {"intensity": 1.0, "frequency_hz": 0.0, "duration_s": 0.01, "onset_s": 0.02}
    values = [torch.as_tensor(value, dtype=torch.float64) for value in {**plain, **changes}.values()]
    batch = torch.broadcast_shapes(*(v.shape for v in values))
    return Sensory(modality, *(v.expand(batch) for v in values), torch.zeros(*batch, 0, dtype=torch.float64))


def arriving(sensory: Sensory, steps: int = 600, dt_s: float = 1e-3) -> torch.Tensor:
    """Mean firing over each step, [*batch, region, step]."""
    own = senses()
    firing, _ = own.firing_hz(own.nothing_under_way(tuple(sensory.intensity.shape), dt_s), sensory, dt_s, steps)
    return firing[:, 1].movedim(0, -1)


@pytest.mark.parametrize(("modality", "region"), [("visual", V1), ("auditory", A1), ("tactile", S1)])
def test_an_event_reaches_its_own_region_after_its_latency(modality, region):
    firing = arriving(felt(modality))
    others = [i for i in range(5) if i != region]
    assert not firing[others].any()
    first = round((0.02 + LATENCY_S[modality]) / 1e-3)
    assert not firing[region, :first].any()
    assert float(firing[region, first]) > 0
    assert int(firing[region].argmax()) in (first + 9, first + 10)  # an alpha function peaks after its time constant


def test_half_the_intensity_brings_half_the_spikes_and_none_brings_none():
    spikes = arriving(felt(intensity=[0.0, 1.0, 3.0, 1e9])).sum(-1)[:, V1] * 1e-3
    expected = VOLLEY_SPIKES * numbers(0.0, 0.5, 0.75, 1.0)
    torch.testing.assert_close(spikes, expected, rtol=1e-6, atol=0.0)


def test_a_full_volley_is_as_large_and_as_wide_as_jansen_and_rits():
    """Their 0.5/s (t / 5 ms)^7 exp(-t / 5 ms): 12.6 spikes with a spread of 14 ms, 374 /s at the peak."""
    firing = arriving(felt(intensity=1e9))[V1]
    t = torch.arange(600, dtype=torch.float64) * 1e-3
    theirs = 0.5 * (t / 0.005) ** 7 * torch.exp(-t / 0.005)
    spread = [(((t - (t * f).sum() / f.sum()).square() * f).sum() / f.sum()).sqrt() for f in (firing, theirs)]
    assert float(firing.sum() / theirs.sum()) == pytest.approx(1.0, rel=1e-3)
    assert float(spread[0] / spread[1]) == pytest.approx(1.0, rel=1e-2)
    assert 0.8 < float(firing.max() / theirs.max()) < 1.25  # ours rises faster: an alpha function peaks at 464 /s


@pytest.mark.parametrize("frequency", [3.7, 40.0, 250.0])
def test_a_train_of_events_is_the_sum_of_its_volleys(frequency):
    """The closed form against volleys laid out one by one; 11 events."""
    many = arriving(felt(frequency_hz=frequency, duration_s=10.2 / frequency), steps=4000, dt_s=1e-3)[V1]
    size = 1 / (1 + (frequency / 40.0) ** 2)
    apart = arriving(felt(onset_s=[0.02 + k / frequency for k in range(11)]), steps=4000)[:, V1].sum(0)
    torch.testing.assert_close(many, size * apart, rtol=1e-8, atol=1e-8)


def test_events_after_the_windows_end_are_not_presented():
    window = arriving(felt(frequency_hz=10.0, duration_s=5.0, onset_s=0.0), steps=1000)
    own = senses()
    firing, rest = own.firing_hz(
        own.nothing_under_way((), 1e-3), felt(frequency_hz=10.0, duration_s=5.0, onset_s=0.0), 1e-3, 500
    )
    spikes = 1e-3 * (firing[:, 1, V1].sum() + VOLLEY_SPIKES * rest[0, :, 1].sum())
    assert float(spikes) == pytest.approx(5 * VOLLEY_SPIKES / 2 / (1 + 1 / 16), rel=1e-6)  # 0, 100, ..., 400 ms
    assert float(window[V1].sum()) * 1e-3 > 1.8 * float(spikes)


def test_what_is_under_way_arrives_in_later_windows():
    own, dt_s = senses(), 1e-3
    flash = felt(frequency_hz=60.0, duration_s=0.02, onset_s=0.004)
    whole, _ = own.firing_hz(own.nothing_under_way((), dt_s), flash, dt_s, 300)
    under_way, parts = own.nothing_under_way((), dt_s), []
    for window in range(10):  # of 30 ms
        part, under_way = own.firing_hz(under_way, flash if window == 0 else None, dt_s, 30)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-5)  # a tail of 4e-8 is cut


def test_faster_events_than_the_pathway_follows_bring_less_each():
    size = [float(arriving(felt(frequency_hz=f, duration_s=0.3, onset_s=0.0))[V1].sum()) for f in (20.0, 80.0)]
    assert size[1] / size[0] == pytest.approx(24 / 6 * (1 + 0.25) / (1 + 4.0), rel=1e-6)


@pytest.mark.parametrize("knob", ["intensity", "frequency_hz", "onset_s"])
def test_gradients_match_finite_differences(knob):
    base = {"intensity": 0.7, "frequency_hz": 13.3, "duration_s": 0.2, "onset_s": 0.0213}
    weigh = torch.sin(torch.arange(400, dtype=torch.float64))

    def read(value: torch.Tensor) -> torch.Tensor:
        return arriving(replace(felt(**base), **{knob: value}), steps=400)[V1] @ weigh

    value = torch.tensor(base[knob], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(read, value, rtol=1e-5, eps=1e-6)


def test_the_slope_in_intensity_is_not_lost_at_no_intensity():
    """Half-saturation at 1: the first bit of light brings spikes at 12.6 per unit."""
    value = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    spikes = arriving(replace(felt(), intensity=value))[V1].sum() * 1e-3
    (slope,) = torch.autograd.grad(spikes, value)
    assert float(slope) == pytest.approx(VOLLEY_SPIKES, rel=1e-6)


def test_a_sense_without_a_pathway_is_refused_with_those_there_are():
    with pytest.raises(StimulusError, match=r"'optical'.*visual, auditory, tactile"):
        arriving(felt("optical"))


def test_a_negative_intensity_is_refused():
    with pytest.raises(StimulusError, match="intensity"):
        arriving(felt(intensity=-1.0))


def test_a_pathway_to_a_region_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="0 to 4"):
        declare_senses({"visual": Pathway(5, 0.05)}, REGIONS)
    with pytest.raises(ConfigError, match=r"latency_s -0\.1"):
        declare_senses({"visual": Pathway(1, -0.1)}, REGIONS)


def seeing() -> Twin:
    twin = jansen_rit_patient(patient=1, regions=4, contacts=4, window_s=0.05)
    afferents_hz = twin.circuit.circuit.afferents_hz
    own = declare_senses(
        {"visual": Pathway(1, LATENCY_S["visual"]), "tactile": Pathway(3, LATENCY_S["tactile"])}, afferents_hz
    )
    return replace(twin, settle_s=0.02, senses=own)


def shown(twin: Twin, **changes: float | list[float]) -> Stimulus:
    """A flash, a pulse train with a flash, and nothing."""
    train = pulse_train(twin.montage, "A1-A2", amplitude_ma=2.0, frequency_hz=90.0, pulses=3, onset_s=0.003)
    rows = concatenate([map_tensors(s, lambda t: t.unsqueeze(0)) for s in (no_stimulus(twin.montage), train, train)])
    flash = {"intensity": [2.0, 1.0, 0.0], "onset_s": 0.005, "frequency_hz": 40.0, "duration_s": 0.06}
    return replace(rows, sensory=felt(**{**flash, **changes}))


def test_a_twin_that_sees_keeps_the_contract():
    twin = replace(seeing(), window_s=0.03)
    check_system(twin, shown(twin), differentiable=True)


def test_a_twin_sees_in_single_precision():
    twin = seeing().to(torch.zeros((), dtype=torch.float32))
    response, after = twin.respond(twin.start((3,), generator(0)), shown(twin), generator(1))
    assert response.signal_uv.dtype == after["sensory"].dtype == torch.float32
    assert bool((after["sensory"][:2, 0] != 0).any())


def test_a_flash_moves_the_region_that_sees_first_and_in_the_window_after():
    """Latency 56 ms, window 50 ms."""
    twin = replace(seeing(), circuit=replace(seeing().circuit, gain=0.0))
    state = twin.start((2,), generator(0))
    state = {name: tensor[:1].expand_as(tensor) for name, tensor in state.items()}
    moved = []
    for window in range(2):
        flash = felt(intensity=[3.0 * (window == 0), 0.0])
        activity, state = twin.activity_mv(
            state, replace(no_stimulus(twin.montage, (2,)), sensory=flash), generator(window)
        )
        moved.append((activity[0] - activity[1]).abs().amax(-1))
    assert not moved[0].any()
    assert float(moved[1][1]) > 0.1  # mV
    assert not moved[1][[0, 2, 3]].any()


def test_gradients_in_intensity_through_two_windows_match_finite_differences():
    twin = seeing()
    state = twin.start((), generator(0))

    def energy(intensity: torch.Tensor) -> torch.Tensor:
        after, total = state, 0.0
        for window in range(3):
            flash = replace(felt(onset_s=0.01), intensity=intensity * (1.0 if window < 2 else 0.5))
            activity, after = twin.activity_mv(
                after, replace(no_stimulus(twin.montage), sensory=flash), generator(2, window)
            )
            total = total + activity.square().mean()
        return total

    size = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(energy(size), size)
    with torch.no_grad():
        numeric = (energy(size + 1e-5) - energy(size - 1e-5)) / 2e-5
    assert abs(float(slope)) > 1e-4
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=0.0)


def test_the_senses_may_enter_elsewhere_than_stimulated_axons():
    twin = replace(seeing(), entry={"afferents_hz": Entry(afferent_hz=1.0), "pyramidal_mv": Entry(sensory_hz=0.05)})
    plain = seeing()
    state, flash = plain.start((), generator(0)), replace(no_stimulus(plain.montage), sensory=felt("tactile"))
    one, _ = plain.activity_mv(state, flash, generator(1))
    other, _ = twin.activity_mv(state, flash, generator(1))
    assert math.isfinite(float(one.sum()))
    assert not torch.allclose(one, other)


def test_senses_that_no_input_listens_to_are_refused():
    with pytest.raises(ConfigError, match="sensory_hz"):
        replace(seeing(), entry={"afferents_hz": Entry(afferent_hz=1.0)})


def test_senses_of_another_head_are_refused():
    with pytest.raises(ShapeError, match="senses"):
        replace(seeing(), senses=senses())
