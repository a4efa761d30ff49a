"""Compiled simulations against `simulate`: the same numbers, gradients, pasts, and a way out without a compiler."""

import gc
import shutil
import warnings
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from stimopt.errors import ConfigError, ShapeError
from stimopt.simulators import (
    Dynamics,
    JansenRit,
    LinearOscillator,
    Network,
    basal_ganglia_patient,
    compiled_unit,
    corticothalamic_patient,
    epileptor_patient,
    euler,
    exact_step,
    heun,
    hopf_patient,
    jansen_rit_patient,
    kuramoto_patient,
    linear_patient,
    montbrio_patient,
    rk4,
    simulate,
    stn_gpe_patient,
    wendling_patient,
    white_waves,
    wilson_cowan_patient,
)
from stimopt.simulators import compiled as compiled_file
from stimopt.simulators.compiled import compiled_simulate, lane_waves
from stimopt.simulators.compiled_delays import past_of_strip, reads_of, strip_of
from stimopt.simulators.compiled_strip import Strip, Sums
from stimopt.simulators.delays import delayed_reads, still_past
from stimopt.simulators.hopf import StuartLandau
from stimopt.simulators.kuramoto import Kuramoto, kuramoto_network
from stimopt.simulators.regions_first import regions_first
from stimopt.tensors import generator

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no C++ compiler here, so nothing can be compiled"
)
ROWS, STEPS, DT_S = 3, 21, 1e-3
CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # the bar: rounding of float64 over some tens of steps, with room

WEIGHTS = torch.tensor([[0.0, 0.6, 0.4], [1.0, 0.0, 0.3], [0.0, 0.5, 0.0]], dtype=torch.float64)
DELAY_S = torch.tensor([[0.0, 0.004, 0.0064], [0.0088, 0.0, 0.003], [0.0, 0.0071, 0.0]], dtype=torch.float64)


def oscillators(gain: float = 900.0, natural: float = 60.0) -> Network:
    natural_per_s = torch.tensor([1.0, 1.3, 0.8], dtype=torch.float64) * natural
    circuit = LinearOscillator(natural_per_s, 8.0, noise_gain=30.0)
    return Network(circuit, WEIGHTS, gain=gain, delay_s=DELAY_S)


def columns() -> JansenRit:
    return JansenRit(torch.tensor([150.0, 120.0, 210.0], dtype=torch.float64))


def forced(dynamics: Dynamics, seed: int = 1, steps: int = STEPS) -> dict[str, Tensor]:
    """A start, noise and drive."""
    source = generator(seed)
    start = dynamics.rest + torch.rand(ROWS, *dynamics.rest.shape, generator=source, dtype=torch.float64)
    drive = torch.randn(steps, 3, ROWS, 3, len(dynamics.inputs), generator=source, dtype=torch.float64)
    return {"start": start, "drive": drive, "waves": white_waves(dynamics, (ROWS,), steps, DT_S, source)}


def assert_alike(dynamics: Dynamics, scheme=rk4, **options) -> None:
    given = forced(dynamics) | {"dt_s": DT_S, "scheme": scheme, "reading": dynamics.potential_mv, "every": 2, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no silent way out
        ours = compiled_simulate(dynamics, **given)
    truth = simulate(dynamics, **given)
    torch.testing.assert_close(ours.readings, truth.readings, **CLOSE)
    torch.testing.assert_close(ours.end, truth.end, **CLOSE)
    assert (ours.past is None) == (truth.past is None)
    if ours.past is not None and truth.past is not None:
        torch.testing.assert_close(ours.past.emission, truth.past.emission, **CLOSE)
        torch.testing.assert_close(ours.past.slope_end, truth.past.slope_end, rtol=1e-10, atol=1e-8)  # per second


@needs_compiler
def test_a_compiled_network_plays_as_the_plain_one_and_new_values_compile_nothing():
    assert_alike(oscillators(), heun)
    before = len(compiled_unit._units)
    assert_alike(oscillators(gain=400.0, natural=80.0), heun)
    assert len(compiled_unit._units) == before
    network = oscillators()
    whole = forced(network)
    cut = 8
    kept = {"dt_s": DT_S, "scheme": heun}
    first = compiled_simulate(network, whole["start"], drive=whole["drive"][:cut], waves=whole["waves"][:cut], **kept)
    second = compiled_simulate(
        network, first.end, drive=whole["drive"][cut:], waves=whole["waves"][cut:], past=first.past, **kept
    )
    at_once = compiled_simulate(network, **whole, **kept)
    torch.testing.assert_close(torch.cat([first.readings, second.readings], -1), at_once.readings, **CLOSE)
    assert torch.equal(at_once.end, compiled_simulate(network, **whole, **kept).end)  # to the bit


def test_without_a_compiler_the_plain_loop_plays_after_a_warning(monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiled_unit, "_lowered", no_compiler)
    network = Network(columns(), WEIGHTS, gain=3.0)
    given = forced(network) | {"dt_s": 7e-4, "scheme": heun}
    with pytest.warns(UserWarning, match="no compiler here"):
        ours = compiled_simulate(network, **given)
    assert torch.equal(ours.end, simulate(network, **given).end)


def test_gradients_in_delays_are_left_to_the_plain_loop(monkeypatch):
    monkeypatch.setattr(compiled_file, "_compiles", lambda *_: pytest.fail("was compiled"))
    delay_s = DELAY_S.clone().requires_grad_()
    network = Network(oscillators().circuit, WEIGHTS, gain=900.0, delay_s=delay_s)
    end = compiled_simulate(network, network.rest + 0.1, dt_s=DT_S, steps=8).end
    assert bool(torch.autograd.grad(end.sum(), delay_s)[0].abs().max() > 0)


def test_refusals_are_those_of_the_plain_loop():
    network = oscillators()
    with pytest.raises(ConfigError, match="shortest delay"):
        compiled_simulate(network, network.rest, dt_s=5e-3, steps=3)
    with pytest.raises(ShapeError, match="region, state"):
        compiled_simulate(network, network.rest[:2], dt_s=DT_S, steps=3)
    with pytest.raises(ShapeError, match="steps is None"):
        compiled_simulate(network, network.rest, dt_s=DT_S)


def test_lane_waves_are_white_and_lie_as_compiled_units_read_them():
    waves = lane_waves(oscillators(), (50,), 400, DT_S, generator(1))
    assert tuple(waves.shape) == (400, 50, 3, 1)
    assert waves.movedim((-1, -2), (1, 2)).is_contiguous()
    # 60,000 normals: their variance is known to 0.6 %, and 4 of those
    assert abs(float(waves.var()) / DT_S - 1) < 0.025


@pytest.mark.parametrize("batched", [False, True])
def test_sums_over_a_strip_hear_what_the_plain_plan_hears(batched):
    plain = oscillators()
    weights = WEIGHTS * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64).reshape(3, 1, 1) if batched else WEIGHTS
    network = Network(plain.circuit, weights, gain=900.0, delay_s=DELAY_S)
    past = still_past(network, torch.rand(ROWS, 3, 2, generator=generator(1), dtype=torch.float64), DT_S)
    past = type(past)(
        *(torch.rand(x.shape, generator=generator(i), dtype=x.dtype) for i, x in enumerate(vars(past).values()))
    )
    block, strip = 3, Strip(strip_of(past))
    reads = reads_of(network, DT_S)
    heard = reads.arrivals(reads.sums(torch.arange(2 * block + 1), strip), strip)  # [read, region, row]
    truth = delayed_reads(network, DT_S, block).drive(network, past)[..., 0] / network.gain  # [step, 3, row, region]
    torch.testing.assert_close(heard[:-1:2].mT, truth[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(heard[1::2].mT, truth[:, 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(heard[2::2].mT, truth[:, 2], rtol=1e-12, atol=1e-12)


def test_a_strip_becomes_a_past_and_a_strip_again():
    strip = torch.rand(4, 5, 3, 6, generator=generator(1), dtype=torch.float64)
    past = past_of_strip(strip, (3,), 2)
    assert strip_of(past) is strip  # a view of a strip is not copied
    apart = type(past)(past.emission.clone(), past.slope_end, past.slope_start)  # the slopes in each other's places
    again = strip_of(apart)
    torch.testing.assert_close(again[:, :, 0], strip[:, :, 0])
    torch.testing.assert_close(again[:, 1:, 1], strip[:, 1:, 2])


@pytest.mark.parametrize("coming", [0, 3, 11])
def test_a_strip_keeps_its_last_steps_in_order(coming):
    strip, seen = Strip(torch.arange(4.0).reshape(1, 4, 1, 1), coming), list(range(4))
    assert strip.rows.flatten().tolist() == seen
    for step in range(4, 15):
        strip.append(torch.full((1, 1, 1), float(step)))
        seen.append(step)
        assert strip.rows.flatten().tolist() == seen[-4:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by bags, and by a sparse matrix
def test_sums_follow_the_strip_round_its_ring(dtype):
    strip = Strip(torch.rand(3, 5, 2, 4, generator=generator(1), dtype=dtype))
    region, step, part = torch.tensor([2, 0, 1, 2]), torch.tensor([4, 0, 3, 1]), torch.tensor([1, 0, 0, 1])
    number, value = torch.tensor([1, 0, 1, 3]), torch.tensor([0.5, 2.0, -1.0, 3.0])
    sums = Sums(strip, 4, number, (region, step, part), value)
    for forward in range(12):
        chosen = strip.rows[region, step, part] * value[:, None].to(dtype)
        expected = torch.zeros(4, 4, dtype=dtype).index_add(0, number, chosen)
        torch.testing.assert_close(sums.of(strip), expected)
        for late in range(forward % 3):  # none, one and two steps between reads
            strip.append(torch.full((3, 2, 4), float(forward + late), dtype=dtype))


def test_a_graph_with_regions_first_gives_the_same_numbers_in_the_order_of_memory():
    def equations(lanes: Tensor, region: Tensor, row: Tensor, weights: Tensor) -> list[Tensor]:
        upright = lanes.movedim(0, -1)  # [row, region]
        sums = (upright * region + row.unsqueeze(-1)).sin()
        coupled = sums @ weights.mT  # no elementwise operation: it is made upright, and read again turned
        more = torch.where(sums > coupled, torch.zeros_like(sums), coupled.sum(-1, keepdim=True))
        return [sums.movedim(-1, 0), (more - 2.0 * sums).movedim(-1, 0), coupled]

    source = generator(1)
    given = [torch.rand(*shape, generator=source, dtype=torch.float64) for shape in ((3, 5), (3,), (5,), (3, 3))]
    turned = regions_first(make_fx(equations)(*given), given)
    for ours, truth in zip(turned(*given), equations(*given), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-14, atol=1e-14)
    assert turned(*given)[0].is_contiguous()


CASES = [
    (lambda: Network(columns(), WEIGHTS, gain=10.0), heun, {}),
    (lambda: Network(columns(), WEIGHTS, gain=10.0, delay_s=DELAY_S), rk4, {}),
    (lambda: Network(columns(), WEIGHTS, gain=10.0, delay_s=DELAY_S), heun, {"hold_coupling": True}),
    (lambda: Network(columns(), WEIGHTS, gain=torch.tensor([2.0, 8.0, 15.0]).double(), delay_s=DELAY_S), euler, {}),
    (lambda: Network(columns(), torch.stack([WEIGHTS, 2 * WEIGHTS, WEIGHTS.mT]), gain=5.0, delay_s=DELAY_S), heun, {}),
    (lambda: StuartLandau(torch.full((3,), 5.0, dtype=torch.float64)), rk4, {}),
    (lambda: Network(StuartLandau(torch.full((3,), 5.0, dtype=torch.float64)), WEIGHTS, gain=3.0, delay_s=DELAY_S,
                     entry=torch.eye(2, dtype=torch.float64), diffusive=True), heun, {}),
]  # fmt: skip


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("make", "scheme", "options"), CASES)
def test_every_circuit_plays_compiled_as_it_plays_plain(make, scheme, options):
    assert_alike(make(), scheme, **options)


def exact_pair(natural: float, batch_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The end of a noisy run by a circuit's own exact step, compiled and plain."""
    network = replace(oscillators(natural=natural), delay_s=None)
    start = torch.rand(*batch_shape, 3, 2, generator=generator(1), dtype=torch.float64)
    waves = white_waves(network, batch_shape, STEPS, DT_S, generator(2))
    given = {"dt_s": DT_S, "steps": STEPS, "waves": waves, "scheme": exact_step(network, DT_S)}
    return compiled_simulate(network, start, **given).end, simulate(network, start, **given).end


@needs_compiler
@pytest.mark.parametrize("batch_shape", [(), (1,), (2,)], ids=str)
def test_an_exact_step_plays_compiled_as_it_plays_plain(batch_shape):
    """With one row the compiler hands out a view with gaps, which the next step read as if it had none."""
    ours, truth = exact_pair(60.0, batch_shape)
    torch.testing.assert_close(ours, truth, **CLOSE)


@needs_compiler
def test_a_scheme_stays_as_long_as_the_step_made_from_it_so_that_none_takes_its_place_in_memory():
    network = replace(oscillators(natural=50.0), delay_s=None)
    scheme = exact_step(network, DT_S)
    still_there = weakref.ref(scheme)
    start = torch.zeros(2, 3, 2, dtype=torch.float64)
    compiled_simulate(network, start, dt_s=DT_S, steps=2, scheme=scheme)
    del scheme
    gc.collect()
    assert still_there() is not None


PATIENTS = (
    (jansen_rit_patient, {"regions": 4, "contacts": 4}),
    (linear_patient, {"regions": 4, "contacts": 4}),
    (wendling_patient, {"regions": 4, "contacts": 4}),
    (wilson_cowan_patient, {"regions": 4, "contacts": 4}),
    (hopf_patient, {"regions": 4, "contacts": 4}),
    (kuramoto_patient, {"regions": 4, "contacts": 4}),
    (epileptor_patient, {"regions": 4, "contacts": 4}),
    (montbrio_patient, {"regions": 4, "contacts": 4}),
    (stn_gpe_patient, {}),
    (corticothalamic_patient, {}),
    (basal_ganglia_patient, {}),
)  # relaxation_patient is a mean field, which `simulate` plays


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("make", "options"), PATIENTS)
def test_every_patients_circuit_plays_compiled_as_it_plays_plain(make, options):
    twin = make(patient=1, **options)
    circuit, steps, source = twin.circuit, 12, generator(1)
    start = circuit.rest + 0.01 * torch.rand(ROWS, *circuit.rest.shape, generator=source, dtype=torch.float64)
    drive = 0.1 * torch.rand(steps, 3, ROWS, twin.regions, len(circuit.inputs), generator=source, dtype=torch.float64)
    waves = white_waves(circuit, (ROWS,), steps, twin.dt_s, source) if circuit.noisy else None
    given = {"dt_s": twin.dt_s, "drive": drive, "waves": waves, "scheme": twin.scheme, "reading": circuit.potential_mv}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours = compiled_simulate(circuit, start, **given)
    truth = simulate(circuit, start, **given)
    torch.testing.assert_close(ours.readings, truth.readings, **CLOSE)
    torch.testing.assert_close(ours.end, truth.end, rtol=1e-9, atol=1e-9)


def score(
    play, gain: Tensor, afferents: Tensor, start: Tensor, drive: Tensor, waves: Tensor, *, every: int = 2, **options
) -> Tensor:
    network = Network(JansenRit(afferents), WEIGHTS, gain=gain, delay_s=DELAY_S)
    played = play(
        network,
        start,
        dt_s=DT_S,
        drive=drive,
        waves=waves,
        scheme=heun,
        reading=network.potential_mv,
        every=every,
        **options,
    )
    return played.readings.square().sum() + played.end[..., 1].sum() + played.past.slope_end.sum() / 10


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("every", "steps"), [(2, STEPS), (1, STEPS), (3, 140)])  # 140: more than one go puts in place
def test_gradients_through_delays_are_those_of_the_plain_loop(every, steps):
    network = Network(columns(), WEIGHTS, gain=10.0, delay_s=DELAY_S)
    given = forced(network, steps=steps)
    at = [
        torch.tensor(10.0, dtype=torch.float64),
        columns().afferents_hz,
        *(given[k] for k in ("start", "drive", "waves")),
    ]

    def gradients(play, **options) -> tuple[Tensor, ...]:
        moved = [x.clone().requires_grad_() for x in at]
        return torch.autograd.grad(score(play, *moved, every=every, **options), moved)

    truth = gradients(simulate)
    for ours in (gradients(compiled_simulate), gradients(compiled_simulate, checkpoint=True)):
        for one, other in zip(ours, truth, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)
    tangent = torch.func.jvp(
        lambda *x: score(compiled_simulate, *x, every=every), tuple(at), tuple(torch.ones_like(x) for x in at)
    )[1]
    torch.testing.assert_close(tangent, sum((g.sum() for g in truth), at[0] * 0), **CLOSE)


@pytest.mark.slow
@needs_compiler
def test_a_potential_with_a_parameter_is_differentiated_in_it():
    network = kuramoto_network(Kuramoto(torch.tensor([40.0, 50.0, 60.0], dtype=torch.float64)), WEIGHTS, gain=3.0)
    given = forced(network)

    def power(play, amplitude_mv: Tensor) -> Tensor:
        moved = replace(network, circuit=replace(network.circuit, amplitude_mv=amplitude_mv))
        return play(moved, **given, dt_s=DT_S, scheme=heun, reading=moved.potential_mv).readings.square().sum()

    at = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    truth = torch.autograd.grad(power(simulate, at), at)[0]
    torch.testing.assert_close(torch.autograd.grad(power(compiled_simulate, at), at)[0], truth, **CLOSE)
    tangent = torch.func.jvp(partial(power, compiled_simulate), (at.detach(),), (torch.ones_like(at),))[1]
    torch.testing.assert_close(tangent, truth, **CLOSE)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("delay_s", "every"), [(None, 2), (DELAY_S, 2), (DELAY_S, 1)])
def test_several_parameters_at_once_are_differentiated_as_one_by_one(delay_s, every):
    given = forced(Network(columns(), WEIGHTS, delay_s=delay_s))

    def answer(play, knobs: Tensor) -> Tensor:
        network = Network(JansenRit(knobs[1] + columns().afferents_hz), WEIGHTS, gain=knobs[0], delay_s=delay_s)
        forcing = {"drive": knobs[2] * given["drive"], "waves": given["waves"], "start": knobs[3] * given["start"]}
        played = play(network, **forcing, dt_s=DT_S, scheme=heun, reading=network.potential_mv, every=every)
        end = played.end.sum() if played.past is None else played.past.slope_end.sum()
        return torch.cat([played.readings.square().mean((0, 1)) * knobs[4], end.reshape(1)])

    knobs = torch.tensor([10.0, 3.0, 1.5, 0.9, 2.0], dtype=torch.float64)  # five: more than travel together
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = torch.func.jacfwd(lambda at: answer(compiled_simulate, at))(knobs)
    torch.testing.assert_close(ours, torch.func.jacfwd(lambda at: answer(simulate, at))(knobs), **CLOSE)


@needs_compiler
def test_what_has_no_compiled_step_is_played_plain_and_right():
    network = columns()
    start, afferents = network.rest.expand(2, -1, -1).contiguous(), network.afferents_hz

    def answer(play, more: Tensor) -> Tensor:
        return play(JansenRit(afferents + more), start, dt_s=DT_S, steps=5, scheme=heun).end.square().sum()

    def both(what) -> list[Tensor]:
        return [what(partial(answer, play)) for play in (compiled_simulate, simulate)]

    more = torch.tensor([20.0, 30.0, 40.0], dtype=torch.float64)
    derivatives = [
        lambda f: torch.func.grad(f)(more),
        lambda f: torch.func.jacfwd(torch.func.jacfwd(f))(more),
        lambda f: torch.func.vmap(f)(more),
    ]
    for what in derivatives:
        with pytest.warns(UserWarning, match="no compiled step under torch.vmap"):
            ours, plain = both(what)
        torch.testing.assert_close(ours, plain, **CLOSE)


@pytest.mark.parametrize("play", [simulate, compiled_simulate])
def test_forcing_that_does_not_fit_the_circuit_is_refused(play):
    start = columns().rest.expand(2, -1, -1).contiguous()
    one = torch.ones(4, 3, 2, 3, 1, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"2 inputs \(afferents_hz, pyramidal_mv\), got \[4, 3, 2, 3, 1\]"):
        play(columns(), start, dt_s=DT_S, drive=one)
    with pytest.raises(ShapeError, match=r"1 noisy states .*got \[4, 2, 3, 2\]"):
        play(columns(), start, dt_s=DT_S, steps=4, waves=torch.zeros(4, 2, 3, 2, dtype=torch.float64))


@pytest.mark.slow
@needs_compiler
def test_a_row_does_not_see_its_batch_and_single_precision_stays_single():
    network = oscillators()
    given = forced(network)
    together = compiled_simulate(network, **given, dt_s=DT_S, scheme=heun).end
    for row in range(ROWS):
        part = {"start": given["start"][row], "drive": given["drive"][:, :, row], "waves": given["waves"][:, row]}
        alone = compiled_simulate(network, **part, dt_s=DT_S, scheme=heun).end
        torch.testing.assert_close(alone, together[row], rtol=1e-13, atol=1e-13)
    single = Network(
        LinearOscillator(network.circuit.natural_per_s.float(), 8.0, noise_gain=30.0), WEIGHTS.float(), gain=900.0,
        delay_s=DELAY_S,
    )  # fmt: skip
    end = compiled_simulate(
        single, dt_s=DT_S, scheme=heun, **{name: value.float() for name, value in given.items()}
    ).end
    assert end.dtype == torch.float32
    torch.testing.assert_close(end.double(), together, rtol=1e-4, atol=1e-4)
