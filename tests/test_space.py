import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stimopt.errors import MontageError, ShapeError, SpaceError, StimulusError
from stimopt.montage import Contact, monopolar
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.stimulus import contact_weights, no_stimulus, pulse_train, table_stimulus

MONTAGE = monopolar(
    [Contact(f"{s}{i}", (3.5 * i, 10.0 * j, 0.0), 0.05, "depth", s) for j, s in enumerate("AB") for i in range(1, 5)]
)
TEMPLATE = pulse_train(MONTAGE, "A1-A2", amplitude_ma=2.0, frequency_hz=50.0, pulse_width_us=200.0, pulses=10)


def parameters():
    bounds = st.tuples(st.floats(0.1, 5), st.floats(5.5, 9))
    return st.fixed_dictionaries(
        {"contacts": st.sampled_from(["site", "categorical", None]), "amplitude_ma": bounds, "width": st.booleans(),
         "frequency": st.sampled_from(["log", "continuous", "ordinal", None]),
         "pulses": st.sampled_from(["integer", None])}
    )  # fmt: skip


def build(plan):
    knobs = []
    if plan["contacts"] == "site":
        knobs.append(contact_site(TEMPLATE, MONTAGE.neighbour_pairs()))
    if plan["contacts"] == "categorical":
        knobs.append(Parameter("contacts", "categorical", choices=("A1", "B2-B3", "A4-A3")))
    knobs.append(Parameter("amplitude_ma", "continuous", *plan["amplitude_ma"], unit="mA"))
    if plan["frequency"] == "ordinal":
        knobs.append(Parameter("frequency_hz", "ordinal", choices=(130.0, 5.0, 50.0)))
    elif plan["frequency"]:
        knobs.append(Parameter("frequency_hz", plan["frequency"], 2.0, 130.0))
    if plan["width"]:
        knobs.append(Parameter("pulse_width_us", "continuous", 60.0, 450.0))
    if plan["pulses"] == "integer":
        knobs.append(Parameter("pulses", "integer", 1, 30))
    return StimulationSpace(tuple(knobs), TEMPLATE)


@given(parameters(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_locating_a_stimulus_gives_back_the_point_that_made_it(plan, seed):
    space = build(plan)
    unit = (
        1.4 * torch.rand(5, space.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.2
    )
    snapped = space.snap(unit)
    assert torch.equal(space.snap(snapped), snapped)
    torch.testing.assert_close(space.locate(space.stimulus(unit)), snapped, atol=1e-9, rtol=0)


@given(parameters(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_encoding_what_was_decoded_is_the_identity(plan, seed):
    space = build(plan)
    unit = space.snap(
        torch.rand(4, space.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )
    torch.testing.assert_close(space.encode(space.decode(unit)), unit, atol=1e-9, rtol=0)
    torch.testing.assert_close(space.encode(space.describe(unit[0])), unit[0], atol=1e-9, rtol=0)


def test_continuous_and_log_axes_pass_gradients():
    space = build({"contacts": None, "amplitude_ma": (1.0, 6.0), "frequency": "log", "width": True, "pulses": None})
    unit = torch.rand(3, space.dimension, dtype=torch.float64, requires_grad=True)

    def numbers(u):
        stimulus = space.stimulus(u)
        return stimulus.amplitude_ma, stimulus.frequency_hz, stimulus.pulse_width_us

    assert torch.autograd.gradcheck(numbers, unit * 0.8 + 0.1)


def test_bounds_are_reached_in_their_units():
    space = StimulationSpace(
        (Parameter("amplitude_ma", "continuous", 0.5, 6.0), Parameter("frequency_hz", "log", 2.0, 200.0)), TEMPLATE
    )
    ends = space.decode(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.5]], dtype=torch.float64))
    assert ends["amplitude_ma"].tolist() == [0.5, 6.0, 0.5]
    assert ends["frequency_hz"].tolist() == pytest.approx([2.0, 200.0, 20.0])


def test_a_duration_becomes_the_pulses_that_begin_within_it():
    space = StimulationSpace((Parameter("duration_s", "continuous", 0.1, 1.0),), TEMPLATE)
    assert space.stimulus(torch.tensor([[0.0], [1.0]], dtype=torch.float64)).pulses.tolist() == [5.0, 50.0]


def test_a_held_duration_follows_the_frequency():
    knobs = (Parameter("frequency_hz", "continuous", 20.0, 100.0),)
    pulses = StimulationSpace(knobs, TEMPLATE, 0.5).stimulus(torch.tensor([[0.0], [1.0]], dtype=torch.float64)).pulses
    assert pulses.tolist() == [10.0, 50.0]
    assert bool((StimulationSpace(knobs, TEMPLATE).stimulus(torch.zeros(1, 1, dtype=torch.float64)).pulses == 10).all())
    with pytest.raises(SpaceError, match="fix each other"):
        StimulationSpace((Parameter("pulses", "integer", 1, 9),), TEMPLATE, 0.5)


def test_a_discrete_space_lists_every_point_once():
    space = StimulationSpace(
        (Parameter("frequency_hz", "ordinal", choices=(5, 7, 11)), Parameter("pulses", "integer", 1, 4)), TEMPLATE
    )
    points = space.points()
    assert points.shape == (12, 2)
    assert len({tuple(p) for p in points.tolist()}) == 12
    assert torch.equal(space.snap(points), points)


def test_the_features_of_a_trial_table_are_parameters():
    template = table_stimulus(monopolar([]), torch.zeros(2, dtype=torch.float64), ("dose", "site"))
    space = StimulationSpace(
        (Parameter("dose", "ordinal", choices=(0.0, 10.0)),
         Parameter("site", "site", choices=(1.0, 2.0, 3.0), coordinates=((0, 0), (1, 0), (0, 2)))),
        template,
    )  # fmt: skip
    assert space.dimension == 3
    assert len(space.points()) == 6


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        (("amplitude_ma", "continuous", 5.0, 1.0), "low must be below high"),
        (("amplitude_ma", "log", 0.0, 1.0), "must be positive"),
        (("pulses", "integer", 1.5, 3), "whole numbers"),
        (("frequency_hz", "continuous", float("nan"), 3), "finite"),
    ],
)
def test_impossible_bounds_are_refused(knob, words):
    with pytest.raises(SpaceError, match=words):
        Parameter(*knob)


def test_names_and_values_outside_the_space_are_refused():
    with pytest.raises(SpaceError, match="no part"):
        StimulationSpace((Parameter("colour", "continuous", 0, 1),), TEMPLATE)
    with pytest.raises(MontageError):
        StimulationSpace((Parameter("contacts", "categorical", choices=("Z9",)),), TEMPLATE)
    space = StimulationSpace((Parameter("amplitude_ma", "continuous", 0.5, 6.0),), TEMPLATE)
    with pytest.raises(SpaceError, match="outside"):
        space.encode({"amplitude_ma": 6000.0})
    with pytest.raises(ShapeError):
        space.stimulus(torch.zeros(2, 3, dtype=torch.float64))


def test_a_pair_carries_opposite_currents_and_no_stimulus_none():
    assert contact_weights(MONTAGE, "A1-A2").tolist()[:3] == [-1.0, 1.0, 0.0]
    assert TEMPLATE.amplitude_ma.sum().item() == 0
    assert TEMPLATE.phase_charge_uc[1].item() == pytest.approx(0.4)  # 2 mA for 200 us
    assert bool(no_stimulus(MONTAGE, (3,)).silent.all())


@pytest.mark.parametrize(
    "wrong",
    [{"pulse_width_us": -1.0}, {"frequency_hz": 0.0}, {"pulses": 2.5}, {"frequency_hz": 3000.0}, {"onset_s": -0.1}],
)
def test_a_stimulus_no_device_could_deliver_is_refused(wrong):
    with pytest.raises(StimulusError):
        pulse_train(MONTAGE, "A1", **{"amplitude_ma": 1.0, "frequency_hz": 50.0, "pulses": 2, **wrong})
