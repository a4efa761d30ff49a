"""The basal-ganglia-thalamic network against the published program's rule, and its error index against frequency."""

from dataclasses import replace
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch

from stimopt.errors import ConfigError
from stimopt.simulators.basal_ganglia import CELLS, BasalGanglia, scattered_cells
from stimopt.simulators.error_index import (
    error_index,
    pulse_current,
    regular_pulses,
    relay_errors,
    sensorimotor_pulses,
    spike_times,
)
from stimopt.simulators.integrate import euler, exponential_euler
from stimopt.simulators.simulate import simulate
from stimopt.tensors import generator

TH, STN, GPE, GPI = range(4)
UNCOUPLED = dict.fromkeys(("g_gpe_stn", "g_stn_gpe", "g_gpe_gpe", "g_stn_gpi", "g_gpe_gpi", "g_gpi_th"), 0.0)


@pytest.fixture
def unchecked(monkeypatch):
    """Long runs without checks of shapes at every call, which take longer than the equations; short ones have them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def network(parkinsonian: float = 0.0, **parameters) -> BasalGanglia:
    return BasalGanglia(torch.tensor([parkinsonian], dtype=torch.float64), **parameters)


def name(variable: str, cell: int) -> int:
    return BasalGanglia.states.index(f"{variable}_{cell}")


def played(circuit: BasalGanglia, start: torch.Tensor, seconds: float, dt_s: float = 5e-5, **currents):
    """Voltages [*batch, 4, cell, time] of region 0 at every step, with a current [step] or [step, *batch] in it."""
    steps = round(seconds / dt_s)
    drive = start.new_zeros(steps, 3, *start.shape[:-1], 4)
    for at, current in currents.items():
        column = circuit.inputs.index(f"{at}_ua_cm2")
        drive[..., 0, column] = current.reshape(steps, 1, *[1] * (start.ndim - 1 - current.ndim), *current.shape[1:])
    scheme = euler if dt_s == 1e-5 else exponential_euler(circuit.decay_per_s)
    with torch.no_grad():
        path = simulate(circuit, start, dt_s=dt_s, drive=drive, scheme=scheme, reading=circuit.voltages_mv)
    return path.readings[..., 0, :, :, :]


def pushed(circuit: BasalGanglia, variable: str, cell: int) -> list[str]:
    """Which voltages change at once when one state is raised by 0.01."""
    still, raised = circuit.rest, circuit.rest.clone()
    raised[..., name(variable, cell)] += 0.01
    none = torch.zeros(1, 4, dtype=torch.float64)
    changed = (circuit.drift(raised, none) - circuit.drift(still, none))[0].abs() > 1e-9
    return [s.replace("_v_mv", "") for s, moved in zip(circuit.states, changed, strict=True) if moved and "_v_mv" in s]


def test_every_synapse_reaches_the_cells_of_the_published_wiring():
    circuit = network()
    assert pushed(circuit, "stn_synapse", 9) == ["gpe_0", "gpe_9", "gpi_0", "gpi_9"]
    assert pushed(circuit, "gpe_synapse", 3) == ["stn_2", "stn_3", "gpe_2", "gpe_5", "gpi_2", "gpi_5"]
    assert pushed(circuit, "gpi_synapse", 4) == ["th_4"]


def test_currents_enter_the_nucleus_they_are_named_after():
    circuit = network()
    none = torch.zeros(1, 4, dtype=torch.float64)
    for column, variable in enumerate(("stn_v_mv", "th_v_mv", "gpe_v_mv", "gpi_v_mv")):
        one = none.clone()
        one[:, column] = 1.0
        change = circuit.drift(circuit.rest, one) - circuit.drift(circuit.rest, none)
        assert change.sum().item() == pytest.approx(CELLS * 1e3, rel=1e-9)  # 1 uA/cm2 on 1 uF/cm2 is 1 mV/ms
        assert change[0, name(variable, 7)].item() == pytest.approx(1e3, rel=1e-9)


def test_the_parkinsonian_state_lowers_the_applied_currents_of_the_paper():
    none = torch.zeros(1, 4, dtype=torch.float64)
    healthy, ill, half = (network(p).drift(network().rest, none)[0] / 1e3 for p in (0.0, 1.0, 0.5))
    for variable, loss in (("th_v_mv", 0.0), ("stn_v_mv", 10.0), ("gpe_v_mv", 13.0), ("gpi_v_mv", 6.0)):
        at = name(variable, 0)
        assert (healthy - ill)[at].item() == pytest.approx(loss, abs=1e-9)
        assert (healthy - half)[at].item() == pytest.approx(loss / 2, abs=1e-9)


def opens(v, half, width):
    return 1 / (1 + np.exp(-(v - half) / width))


def program_step(x: SimpleNamespace, scatter: np.ndarray, dt: float) -> None:
    """One step of the published rule (ModelDB 141699, parkinsonian), written apart: crossing -10 mV makes a kick.

    It differs from the program in two things that fall with the step: the kick comes one step after the crossing, when
    a rate can know of it, and its decay sees the activation of the step's start, not its end.
    """
    v, s = x.v.copy(), x.gpe_open.copy()
    th, stn, gp = v[0], v[1], v[2:]
    release = np.exp(1) / 5 * np.array([[0.43], [0.3]])
    gpi_th = 1.4 * 0.08 * (th + 85) * x.alpha[1]
    m, p = opens(th, -37, 7), opens(th, -60, 6.2)
    x.v[0] += dt * -(
        0.05 * (th + 70) + 3 * m**3 * x.th_h * (th - 50) + 5 * (0.75 * (1 - x.th_h)) ** 4 * (th + 75)
        + 5 * p**2 * x.th_r * th + gpi_th
    )  # fmt: skip
    x.th_h += dt * (opens(th, -41, -4) - x.th_h) * (0.128 * np.exp(-(th + 46) / 18) + 4 * opens(th, -23, 5))
    x.th_r += dt * (opens(th, -84, -4) - x.th_r) / (0.15 * (28 + np.exp(-(th + 25) / 10.5)))

    low = 0.5 * opens(stn, -63, 7.8) ** 3 * (opens(x.stn_r, 0.4, 0.1) - opens(0, 0.4, 0.1)) ** 2 * (stn - 140)
    calcium = 2 * x.stn_c**2 * (stn - 140)
    x.v[1] += dt * (
        33 - 10 - 2.25 * (stn + 60) - 45 * x.stn_n**4 * (stn + 80)
        - 37 * opens(stn, -30, 15) ** 3 * x.stn_h * (stn - 55) - low - calcium
        - 20 * (stn + 80) * x.stn_ca / (x.stn_ca + 15) - 0.5 * (stn + 85) * (s + np.roll(s, -1))
    )  # fmt: skip
    x.stn_n += dt * 0.75 * (opens(stn, -32, 8) - x.stn_n) / (1 + 100 * opens(stn, -80, -26))
    x.stn_h += dt * 0.75 * (opens(stn, -39, -3.1) - x.stn_h) / (1 + 500 * opens(stn, -57, -3))
    x.stn_r += dt * 0.2 * (opens(stn, -67, -2) - x.stn_r) / (7.1 + 17.5 * opens(stn, 68, -2.2))
    x.stn_c += dt * 0.08 * (opens(stn, -20, 8) - x.stn_c) / (1 + 10 * opens(stn, -80, -26))
    x.stn_ca += dt * 3.75e-5 * (-calcium - low - 22.5 * x.stn_ca)

    low = 0.5 * opens(gp, -57, 2) ** 3 * x.gp_r * (gp - 120)
    calcium = 0.15 * opens(gp, -35, 2) ** 2 * (gp - 120)
    excited, inhibited = x.alpha[0] + np.roll(x.alpha[0], 1), np.roll(s, -1) + np.roll(s, 2)
    applied = np.stack([21 - 13 + scatter, np.full(CELLS, 22.0 - 6.0)])
    x.v[2:] += dt * (
        applied - 0.1 * (gp + 65) - 30 * x.gp_n**4 * (gp + 80) - 120 * opens(gp, -37, 10) ** 3 * x.gp_h * (gp - 55)
        - low - calcium - 10 * (gp + 80) * x.gp_ca / (x.gp_ca + 10)
        - 0.5 * 0.3 * gp * excited - 0.5 * (gp + 85) * inhibited
    )  # fmt: skip
    lag = 0.05 + 0.27 * opens(gp, -40, -12)
    x.gp_n += dt * 0.1 * (opens(gp, -50, 14) - x.gp_n) / lag
    x.gp_h += dt * 0.05 * (opens(gp, -58, -12) - x.gp_h) / lag
    x.gp_r += dt * (opens(gp, -70, -2) - x.gp_r) / 30
    x.gp_ca += dt * 1e-4 * (-calcium - low - 15 * x.gp_ca)
    x.gpe_open += dt * (2 * (1 - s) * opens(v[2], -37, 2) - 0.04 * s)
    x.alpha, x.kick = x.alpha + dt * x.kick, x.kick - dt * (0.4 * x.kick + x.alpha / 25) + release * x.crossed
    x.crossed = (v[1::2] < -10) & (x.v[1::2] > -10)


def program_start(v: np.ndarray) -> SimpleNamespace:
    th, stn, gp = v[0], v[1], v[2:]
    return SimpleNamespace(
        v=v.copy(), th_h=opens(th, -41, -4), th_r=opens(th, -84, -4), stn_n=opens(stn, -32, 8),
        stn_h=opens(stn, -39, -3.1), stn_r=opens(stn, -67, -2), stn_c=opens(stn, -20, 8), stn_ca=np.full(CELLS, 0.1),
        gp_n=opens(gp, -50, 14), gp_h=opens(gp, -58, -12), gp_r=opens(gp, -70, -2), gp_ca=np.full((2, CELLS), 0.1),
        gpe_open=np.zeros(CELLS), alpha=np.zeros((2, CELLS)), kick=np.zeros((2, CELLS)),
        crossed=np.zeros((2, CELLS), bool),
    )  # fmt: skip


def test_with_a_lag_of_one_step_eulers_scheme_is_the_published_rule(unchecked):
    circuit, start = scattered_cells(network(1.0, release=(-10.0, 1e-6), release_lag_ms=0.01), generator(0, "cells"))
    ours = played(circuit, start, 0.01, 1e-5)
    program = program_start(circuit.voltages_mv(start)[0].numpy())
    theirs = []
    for _ in range(1000):
        theirs.append(program.v.copy())
        program_step(program, circuit.gpe_scatter[0].numpy(), 0.01)
    theirs = torch.from_numpy(np.stack(theirs, -1))
    fired = ((theirs[..., 1:] > -10) & (theirs[..., :-1] < -10)).sum((-1, -2))
    assert int(fired[STN]) > 5
    assert int(fired[GPI]) > 10
    assert float((ours - theirs).abs().max()) < 1e-7  # mV; rounding, which upstrokes of 3000 mV/ms have amplified


@pytest.mark.parametrize("dt_s", [1e-5, 5e-5])
def test_a_spike_of_any_shape_opens_its_synapse_by_the_published_amount(dt_s, unchecked):
    """0.43 for STN and 0.3 for GPi, 5 ms after the spike; the release lag leaves out at most 2 % of it."""
    circuit = network(stn_applied=0.0, gpi_applied=0.0, gpe_applied=0.0, **UNCOUPLED)
    steps = round(0.008 / dt_s)
    pulse = pulse_current(torch.tensor([0.0005], dtype=torch.float64), steps, dt_s, width_s=3e-4, amplitude=300.0)
    drive = torch.zeros(steps, 3, 1, 4, dtype=torch.float64)
    drive[..., 0, 0] = drive[..., 0, 3] = pulse.unsqueeze(-1)
    scheme = euler if dt_s == 1e-5 else exponential_euler(circuit.decay_per_s)
    with torch.no_grad():
        path = simulate(circuit, circuit.rest, dt_s=dt_s, drive=drive, scheme=scheme).readings[0]
    for nucleus, peak in (("stn", 0.43), ("gpi", 0.3)):
        assert spike_times(path[None, name(f"{nucleus}_v_mv", 0)], dt_s, -10.0).shape[-1] == 1
        assert float(path[name(f"{nucleus}_synapse", 0)].max()) == pytest.approx(peak, rel=0.02)


@pytest.fixture(scope="module")
def alone():
    """Cells without synapses for 0.16 s, `[row, 4, time]` by 0.1 ms; thalamic rows rest, hear pulses, are held down."""
    circuit = BasalGanglia(torch.zeros(4, 1, dtype=torch.float64), release_lag_ms=0.1, **UNCOUPLED)
    time_s = torch.arange(1600) * 1e-4
    pulses = pulse_current(torch.tensor([0.02, 0.08, 0.12], dtype=torch.float64), 1600, 1e-4)
    held = -0.5 * ((time_s > 0.02) & (time_s < 0.12)).double()
    thalamic = torch.stack([torch.zeros_like(pulses), pulses, held, held], -1)
    extra = torch.tensor([-33.0, -10.0, 0.0, 10.0], dtype=torch.float64).expand(1600, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        return played(circuit, circuit.rest, 0.16, 1e-4, cortex=thalamic, stn=extra, gpe=extra, gpi=extra)[:, :, 0]


def test_a_thalamic_cell_rests_relays_every_pulse_and_rebounds_from_inhibition(alone):
    """Rubin and Terman 2004: it relays depolarising pulses, and inhibition brings its T current back."""
    spikes = spike_times(alone[:, TH], 1e-4)
    assert spikes.isfinite().sum(-1).tolist() == [0, 3, 1, 1]
    delay = spikes[1] - torch.tensor([0.02, 0.08, 0.12], dtype=torch.float64)
    assert bool(((delay > 0) & (delay < 0.025)).all())
    assert 0.12 < float(spikes[2, 0]) < 0.145


def test_subthalamic_and_pallidal_cells_fire_on_their_own_and_faster_with_current(alone):
    for nucleus in (STN, GPE, GPI):
        fired = spike_times(alone[:, nucleus], 1e-4, -20.0).isfinite().sum(-1)
        assert bool((fired.diff() > 0).all())  # from without applied current to 10 uA/cm2 above the healthy one
        assert int(fired[2]) >= 5


def test_a_row_gets_the_same_alone_as_in_a_batch():
    both, start = scattered_cells(
        BasalGanglia(torch.tensor([[0.0], [1.0]], dtype=torch.float64)), generator(3, "cells")
    )
    alone = replace(both, parkinsonian=both.parkinsonian[1], gpe_scatter=both.gpe_scatter[1])
    torch.testing.assert_close(played(both, start, 0.002)[1], played(alone, start[1], 0.002), rtol=0, atol=1e-12)


def test_parameters_may_differ_per_row_of_a_batch():
    two = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    circuit = BasalGanglia(torch.zeros(2, 1, dtype=torch.float64), g_gpi_th=two, stn_peak=two, alpha_ms=two + 4)
    state = circuit.rest.clone()
    state[..., name("gpi_synapse", 0)] = 0.1
    none = torch.zeros(2, 1, 4, dtype=torch.float64)
    change = circuit.drift(state, none) - circuit.drift(circuit.rest, none)
    assert change[:, 0, name("th_v_mv", 0)].tolist() == pytest.approx([0.1 * (-85 + 62) * 1e3, 0.0])


def test_gradients_match_finite_differences(unchecked):
    def end(amplitude: torch.Tensor, parkinsonian: torch.Tensor) -> torch.Tensor:
        circuit = BasalGanglia(parkinsonian)
        drive = torch.zeros(20, 3, 1, 4, dtype=torch.float64).index_fill(-1, torch.tensor([0]), 1.0) * amplitude
        scheme = exponential_euler(circuit.decay_per_s)
        states = simulate(circuit, circuit.rest, dt_s=5e-5, drive=drive, scheme=scheme).end[0, ::CELLS]
        return torch.stack([states[name("stn_v_mv", 0) // CELLS], states.sum()])

    values = (torch.tensor(60.0, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64))
    assert torch.autograd.gradcheck(end, [v.requires_grad_() for v in values], eps=1e-6, rtol=1e-5, atol=1e-6)


def test_the_error_index_counts_misses_bursts_and_late_spikes():
    pulses = torch.tensor([0.1, 0.3, 0.4, 0.5, 0.6, 0.99], dtype=torch.float64)  # first and last are not counted
    spikes = torch.tensor(
        [[0.31, 0.405, 0.51, 0.61, torch.inf], [0.31, 0.405, 0.41, 0.56, 0.61], [0.33, 0.35, 0.42, 0.52, 0.62]],
        dtype=torch.float64,
    )
    errors = relay_errors(spikes, pulses, 1.0)
    assert errors.pulses.item() == 4
    assert errors.misses.tolist() == [0, 1, 1]
    assert errors.bursts.tolist() == [0, 1, 0]
    assert errors.spurious.tolist() == [0, 1, 2]
    assert error_index(spikes, pulses, 1.0).item() == pytest.approx((0 + 3 + 3) / 3 / 4)


def test_spike_times_are_upward_crossings():
    voltage = torch.tensor([[-60.0, -30.0, 20.0, -50.0, -39.0], [-60.0, -60.0, -60.0, -60.0, -60.0]])
    times = spike_times(voltage, 1e-3)
    assert times.tolist() == [[0.001, 0.004], [torch.inf, torch.inf]]


def test_sensorimotor_pulses_follow_a_gamma_of_the_papers_mean_and_variation():
    pulses = sensorimotor_pulses((40,), 20.0, generator(1, "pulses"))
    frequency = 1 / pulses.diff(dim=-1)
    frequency = frequency[frequency.isfinite() & (frequency > 0)]
    assert float(frequency.mean()) == pytest.approx(14.0, abs=0.15)  # 11000 draws: standard error 0.03 Hz
    assert float(frequency.std() / frequency.mean()) == pytest.approx(0.2, abs=0.01)
    torch.testing.assert_close(pulses[0, :20], sensorimotor_pulses((1,), 20.0, generator(1, "pulses"))[0, :20])
    regular = sensorimotor_pulses((1,), 0.99, generator(1, "pulses"), variation=0.0)
    torch.testing.assert_close(regular[0], torch.arange(1, 14, dtype=torch.float64) / 14)
    with pytest.raises(ConfigError, match="rate_hz"):
        sensorimotor_pulses((1,), 1.0, generator(1, "pulses"), rate_hz=0.0)


def test_pulses_keep_their_charge_wherever_they_fall():
    onsets = regular_pulses(torch.tensor([0.0, 130.0, 7.0], dtype=torch.float64), 0.1)
    assert onsets.isfinite().sum(-1).tolist() == [0, 13, 1]
    current = pulse_current(onsets, 2000, 5e-5, width_s=3e-4, amplitude=300.0)
    charge = current.sum(0) * 5e-5
    torch.testing.assert_close(charge, torch.tensor([0, 13, 1], dtype=torch.float64) * 300 * 3e-4)
    assert float(current.max()) <= 300.0 + 1e-9


@pytest.mark.slow
def test_fast_stimulation_restores_the_relay_and_slow_does_not(unchecked):
    """So, Kent and Grill 2012: error index against frequency of STN stimulation, 300 uA/cm2, 0.3 ms.

    Means over 6 seeds of 1 s. Beside them the published program's rule, run apart in C at 0.01 ms with other seeds
    (6 of 1.2 s): healthy 0.008, parkinsonian 0.387, at 5, 10, 20 and 30 Hz 0.328, 0.303, 0.289 and 0.369, from 100 Hz
    on 0.000; standard deviation over seeds 0.07 to 0.13 where the index is above 0.2.
    """
    seconds, dt_s, seeds = 1.0, 5e-5, 6
    hz = torch.tensor([0, 0, 5, 10, 20, 30, 100, 130, 185], dtype=torch.float64)
    ill = torch.tensor([0, *[1] * 8], dtype=torch.float64).reshape(-1, 1, 1).expand(-1, seeds, 1)
    circuit, start = scattered_cells(BasalGanglia(torch.zeros(seeds, 1, dtype=torch.float64)), generator(0, "cells"))
    circuit = replace(circuit, parkinsonian=ill)
    pulses = sensorimotor_pulses((seeds,), seconds, generator(0, "pulses"))
    steps = round(seconds / dt_s)
    drive = torch.zeros(steps, 1, len(hz), seeds, 1, 4, dtype=torch.float64)
    stimulation = pulse_current(regular_pulses(hz, seconds), steps, dt_s, width_s=3e-4, amplitude=300.0)
    drive[..., 0, 0] = stimulation.reshape(steps, 1, -1, 1)
    drive[..., 0, 1] = pulse_current(pulses, steps, dt_s).reshape(steps, 1, 1, -1)
    with torch.no_grad():
        path = simulate(
            circuit, start.expand(len(hz), -1, -1, -1), dt_s=dt_s, drive=drive.expand(-1, 3, -1, -1, -1, -1),
            scheme=exponential_euler(circuit.decay_per_s), every=2,
            reading=lambda state: circuit.voltages_mv(state)[..., 0, :, :].float(),
        )  # fmt: skip
    index = error_index(spike_times(path.readings[:, :, TH], 2 * dt_s), pulses.expand(len(hz), -1, -1), seconds).mean(
        -1
    )
    print("simulated error index:", dict(zip(["healthy", "ill", *hz[2:].tolist()], index.tolist(), strict=True)))
    assert float(index[0]) < 0.05
    assert bool((index[1:6] > 0.2).all())
    assert bool((index[6:] < 0.02).all())
    healthy = (
        spike_times(path.readings[0].flatten(0, 0), 2 * dt_s, -20.0).isfinite().sum(-1).double().mean((0, 2)) / seconds
    )
    print("simulated healthy rates, Hz (thalamus, STN, GPe, GPi):", healthy.tolist())
    assert healthy.tolist() == pytest.approx([13.3, 10.6, 74.4, 81.1], rel=0.1)  # the program's; a step of 0.01 ms
