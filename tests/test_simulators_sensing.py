"""Lead fields against the laws they follow, and one twin heard through several modalities at once."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from stimopt.errors import ConfigError, ContractError, DataError, MontageError, ShapeError
from stimopt.montage import Contact, Montage, monopolar
from stimopt.simulators import jansen_rit_patient, linear_patient
from stimopt.simulators.amplifier import CommonAverage, Delay
from stimopt.simulators.bold import Balloon, power_activity
from stimopt.simulators.interference import Background, WhiteNoise
from stimopt.simulators.lead_field import (
    average_reference,
    dipole_lead_field,
    distance_lead_field,
    monopole_lead_field,
    read_lead_field,
)
from stimopt.simulators.sensing import Sensing, clinical_amplifier, distance_sensing, lead_field_sensing
from stimopt.simulators.twin import Twin
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator, map_tensors, row_keys
from stimopt.testing import check_system

SHAFT = monopolar([Contact(f"A{i + 1}", (3.5 * i, 0.0, 0.0), shaft="A") for i in range(4)])
CAP = monopolar(
    [Contact(name, place, kind="scalp") for name, place in
     (("Fz", (0.0, 60.0, 60.0)), ("Cz", (0.0, 0.0, 85.0)), ("Oz", (0.0, -85.0, 10.0)))]
)  # fmt: skip


def places(*rows: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def patient(**changes) -> Twin:
    return replace(jansen_rit_patient(patient=1, regions=6, contacts=8, window_s=0.5, rate_hz=250.0), **changes)


def test_a_monopole_falls_with_distance_and_has_the_size_of_ohms_law():
    field = monopole_lead_field(places((2.0, 0.0, 0.0), (0.0, 8.0, 0.0)), places((0.0, 0.0, 0.0)), na_per_mv=50.0)
    # 50 nA at 2 mm in 0.3 S/m: 50e-9 / (4 pi 0.3 2e-3) V
    assert float(field[0, 0]) == pytest.approx(50e-9 / (4 * math.pi * 0.3 * 2e-3) * 1e6)
    assert float(field[0, 0] / field[1, 0]) == pytest.approx(4.0)


def test_a_dipole_is_the_limit_of_two_monopoles_drawn_together():
    moment = places((0.0, 0.0, 20.0))  # nA m
    seen = places((3.0, -1.0, 4.0), (10.0, 5.0, -6.0), (7.0, 0.0, 0.0))
    apart_mm = 1e-3
    ends = places((0.0, 0.0, apart_mm / 2), (0.0, 0.0, -apart_mm / 2))
    current_na = 20.0 / (apart_mm * 1e-3)
    two = monopole_lead_field(seen, ends, na_per_mv=current_na) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    one = dipole_lead_field(seen, places((0.0, 0.0, 0.0)), moment)[:, 0]
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)  # 20 nA m at 5 mm are 170 uV
    assert float(one[0]) > 0 > float(one[1])
    assert abs(float(one[2])) < 1e-9


def test_a_source_inside_a_contact_stays_finite():
    here = places((0.0, 0.0, 0.0))
    assert float(monopole_lead_field(here, here, na_per_mv=1.0)) == pytest.approx(1 / (4 * math.pi * 0.3))
    assert float(dipole_lead_field(here, here, places((1.0, 0.0, 0.0)))) == 0.0


def test_the_distance_law_is_half_at_the_reach_and_falls_with_the_square_far_away():
    field = distance_lead_field(places((3.0, 0.0, 0.0), (300.0, 0.0, 0.0), (600.0, 0.0, 0.0)), places((0.0, 0.0, 0.0)))
    assert float(field[0]) == pytest.approx(50.0)
    assert float(field[1] / field[2]) == pytest.approx(4.0, rel=1e-3)


def test_monopolar_bipolar_and_average_readings_of_one_field_agree():
    field = torch.rand(4, 3, generator=generator(0), dtype=torch.float64)
    alone, pairs = lead_field_sensing(SHAFT, field), lead_field_sensing(SHAFT.bipolar(), field)
    potential = torch.randn(2, 3, 50, generator=generator(1), dtype=torch.float64)
    single = alone.clean_uv(potential)
    torch.testing.assert_close(pairs.clean_uv(potential), single[:, :-1] - single[:, 1:])
    averaged = replace(alone, parts=(CommonAverage(),))
    read = averaged.signal_uv(potential, no_stimulus(SHAFT, (2,)), 500.0, keys=row_keys((2,), generator(2)), salt=1)
    torch.testing.assert_close(read, single - single.mean(1, keepdim=True))
    referenced = lead_field_sensing(SHAFT, average_reference(field))
    torch.testing.assert_close(referenced.clean_uv(potential), read)
    torch.testing.assert_close(read[:, :-1] - read[:, 1:], pairs.clean_uv(potential))  # a difference needs no reference


def test_parts_do_their_work_in_the_order_given():
    field = torch.ones(4, 1, dtype=torch.float64)
    arguments = (torch.zeros(1, 1, 40, dtype=torch.float64), no_stimulus(SHAFT, (1,)), 500.0)
    keys = row_keys((1,), generator(0))
    noise, average = WhiteNoise(5.0), CommonAverage()
    before, after = (
        Sensing(field, 0.0, parts).signal_uv(*arguments, keys=keys, salt=2)
        for parts in ((noise, average), (average, noise))
    )
    assert float(before.mean(1).abs().max()) < 1e-12 < float(after.mean(1).abs().max())


def test_two_parts_of_a_kind_draw_noise_of_their_own_and_none_shares_the_sensors():
    sensing = Sensing(torch.zeros(4, 1, dtype=torch.float64), 5.0, (WhiteNoise(5.0), WhiteNoise(5.0)))
    keys = row_keys((50,), generator(0))
    arguments = (torch.zeros(50, 1, 200, dtype=torch.float64), no_stimulus(SHAFT, (50,)), 500.0)
    read = sensing.signal_uv(*arguments, keys=keys, salt=2)
    expected = 5 * math.sqrt(3)  # independent: variances add
    assert abs(float(read.std()) - expected) < 4 * expected / math.sqrt(2 * read.numel())


def test_without_parts_the_reading_is_what_it_was():
    sensing = distance_sensing(SHAFT, places((1.0, 2.0, 0.0)), noise_uv=0.0)
    potential = torch.ones(1, 1, 5, dtype=torch.float64)
    read = sensing.signal_uv(potential, no_stimulus(SHAFT, (1,)), 500.0, keys=row_keys((1,), generator(0)), salt=1)
    torch.testing.assert_close(read, sensing.clean_uv(potential))


def test_a_lead_field_of_another_montage_is_refused():
    with pytest.raises(ShapeError, match="4 contacts"):
        lead_field_sensing(SHAFT, torch.ones(3, 2, dtype=torch.float64))


def test_distances_need_the_places_of_all_contacts():
    with pytest.raises(MontageError, match="B1"):
        distance_sensing(monopolar([Contact("B1")]), places((0.0, 0.0, 0.0)))


def head_file(path, **changes):
    values = np.arange(12.0).reshape(3, 4)
    field = xr.DataArray(values, dims=("sensor", "region"), attrs={"units": changes.pop("units", "uV/mV")})
    names = {"sensor": ["Fz", "Cz", "Oz"], "region": ["V1", "A1", "S1", "M1"]}
    data = xr.Dataset({changes.pop("name", "lead_field"): field.transpose("region", "sensor")}, coords=names)
    if changes.pop("broken", False):
        data["lead_field"][0, 0] = np.nan
    data.to_netcdf(path, engine="h5netcdf")
    return path


def test_a_lead_field_is_read_by_name_in_the_order_asked_for(tmp_path):
    read = read_lead_field(head_file(tmp_path / "head.nc"), ["Oz", "Fz"], ["S1", "V1"])
    assert read.tolist() == [[10.0, 8.0], [2.0, 0.0]]


@pytest.mark.parametrize(("changes", "asked", "words"), [
    ({}, ["Pz"], "no sensor named Pz"),
    ({"units": "V/Am"}, ["Fz"], "'V/Am'"),
    ({"name": "gain"}, ["Fz"], "no variable 'lead_field'"),
    ({"broken": True}, ["Fz"], "not finite"),
])  # fmt: skip
def test_a_lead_field_that_cannot_be_right_is_refused(tmp_path, changes, asked, words):
    with pytest.raises(DataError, match=words):
        read_lead_field(head_file(tmp_path / "head.nc", **changes), asked, ["V1"])


@pytest.mark.parametrize("like", [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float32)])
def test_a_twin_behind_a_clinical_amplifier_keeps_the_contract_of_a_system(like):
    twin = linear_patient(patient=1, regions=4, contacts=6, window_s=0.05)
    parts = (*clinical_amplifier(twin.montage), CommonAverage(), Delay(0.004))
    twin = replace(twin, settle_s=0.02, sensing=replace(twin.sensing, noise_uv=0.0, parts=parts)).to(like)
    pair = twin.montage.neighbour_pairs()[0]
    trains = [pulse_train(twin.montage, pair, amplitude_ma=a, frequency_hz=60.0, pulses=2) for a in (1.0, 3.0)]
    stimuli = concatenate([map_tensors(t, lambda tensor: tensor.unsqueeze(0)) for t in trains])
    check_system(twin, stimuli, differentiable=True)


def test_the_check_still_finds_a_part_that_mixes_rows():
    class Mixing(CommonAverage):
        def applied(self, signal_uv, window):
            return signal_uv - signal_uv.mean(0, keepdim=True)

    twin = linear_patient(patient=1, regions=6, contacts=8, window_s=0.1)
    twin = replace(twin, settle_s=0.0, sensing=replace(twin.sensing, parts=(Mixing(),)))
    with pytest.raises(ContractError, match="rows of a batch do not see each other"):
        check_system(twin, no_stimulus(twin.montage, (2,)))


def test_an_artefact_shows_in_the_response_and_not_in_the_activity():
    twin = patient(settle_s=0.02, window_s=0.3)
    loud = replace(twin, sensing=replace(twin.sensing, parts=clinical_amplifier(twin.montage)[1:2]))
    stimulus = pulse_train(twin.montage, "A1-A2", amplitude_ma=2.0, frequency_hz=25.0, pulses=3, onset_s=0.1)
    state = twin.start((), generator(0))
    with torch.no_grad():
        clean, with_artefact = (t.respond(state, stimulus, generator(1))[0].signal_uv for t in (twin, loud))
    added = with_artefact - clean
    assert not added[:, :25].any()
    assert float(added[:, 25:60].abs().max()) > 100.0


def windows_of(twin: Twin, count: int, rows: int) -> list[torch.Tensor]:
    """Activity of one session, window after window; the second half is stimulated at the focus."""
    state, activity = twin.start((rows,), generator(0)), []
    silent = no_stimulus(twin.montage, (rows,))
    train = pulse_train(twin.montage, "B2-B3", amplitude_ma=3.0, frequency_hz=60.0, pulses=12).expand(rows)
    for window in range(count):
        potential_mv, state = twin.activity_mv(state, silent if 2 * window < count else train, generator(1, window))
        activity.append(potential_mv)
    return activity


def test_one_twin_gives_seeg_scalp_eeg_and_bold_of_the_same_windows():
    twin = patient(settle_s=0.1, window_s=0.2)
    depth = replace(twin.sensing, noise_uv=0.0, parts=(Background(mixing=twin.montage.channel_matrix),))
    scalp_field = generator(3)
    head = torch.rand(3, 6, generator=scalp_field, dtype=torch.float64)  # uV per mV, as a head model would give it
    scalp = lead_field_sensing(CAP, average_reference(head))
    balloon = Balloon(torch.ones(6, dtype=torch.float64))
    vessels, keys, silent = balloon.start((2,)), row_keys((2,), generator(2)), no_stimulus(twin.montage, (2,))
    seeg, eeg, bold = [], [], []
    with torch.no_grad():
        for number, potential_mv in enumerate(windows_of(twin, 6, 2)):
            seeg.append(depth.signal_uv(potential_mv, silent, twin.rate_hz, keys=keys, salt=number))
            eeg.append(scalp.signal_uv(potential_mv, silent, twin.rate_hz, keys=keys, salt=number))
            activity = power_activity(potential_mv, rest_mv=0.0, scale_mv=20.0)
            read, vessels = balloon.scan(vessels, activity, twin.rate_hz, dt_s=0.1)
            bold.append(read)
    shapes = [tuple(torch.cat(parts, -1).shape) for parts in (seeg, eeg, bold)]
    assert shapes == [(2, 8, 300), (2, 3, 300), (2, 6, 12)]
    assert all(bool(part.isfinite().all()) for part in (*seeg, *eeg, *bold))
    assert float(torch.cat(eeg, -1).sum(1).abs().max()) < 1e-9  # against the average of the cap
    assert float(torch.cat(eeg, -1).std()) < 0.1 * float(torch.cat(seeg, -1).std())
    later = torch.cat(bold, -1)
    assert not later[..., 0].any()
    assert float((later[0] - later[1]).abs().max()) > 0  # rows have noise, and so vessels, of their own


def test_one_window_is_seen_by_several_recordings_at_once():
    twin = patient(settle_s=0.1, window_s=0.2)
    head = torch.rand(3, 6, generator=generator(3), dtype=torch.float64)
    scalp = lead_field_sensing(CAP, average_reference(head), noise_uv=2.0)
    quiet = replace(scalp, noise_uv=0.0)
    stimulus = pulse_train(twin.montage, "B2-B3", amplitude_ma=2.0, frequency_hz=60.0, pulses=4).expand(2)
    state = twin.start((2,), generator(0))
    others = {"scalp": (CAP, scalp), "again": (CAP, scalp), "quiet": (CAP, quiet)}
    seen = twin.respond_paired(state, stimulus, generator(1), others)
    alone, after = twin.respond(state, stimulus, generator(1))
    assert torch.equal(seen.response.signal_uv, alone.signal_uv)
    assert all(torch.equal(seen.after[name], after[name]) for name in after)
    assert torch.equal(seen.potential_mv, twin.activity_mv(state, stimulus, generator(1))[0])
    truth = quiet.clean_uv(seen.potential_mv)
    torch.testing.assert_close(seen.others["quiet"].signal_uv, truth)
    noises = [seen.others[name].signal_uv - truth for name in ("scalp", "again")]
    assert all(1.8 < float(noise.std()) < 2.2 for noise in noises)
    assert abs(float((noises[0] * noises[1]).mean())) < 0.5  # each has its own
    with pytest.raises(ConfigError, match="5 recordings beside"):
        twin.respond_paired(state, stimulus, generator(1), {str(i): (CAP, scalp) for i in range(5)})


def test_gradients_reach_the_stimulus_through_every_modality():
    twin = patient(settle_s=0.1, window_s=0.1)
    stimulus = pulse_train(twin.montage, "B2-B3", amplitude_ma=2.0, frequency_hz=60.0, pulses=4)
    amplitude = stimulus.amplitude_ma.clone().requires_grad_()
    state = twin.start((), generator(0))
    potential_mv, _ = twin.activity_mv(state, replace(stimulus, amplitude_ma=amplitude), generator(1))
    balloon = Balloon(torch.ones(6, dtype=torch.float64))
    _, vessels = balloon.scan(balloon.start(), power_activity(potential_mv, rest_mv=0.0, scale_mv=20.0), 250.0)
    bold = balloon.bold_percent(balloon.scan(vessels, torch.zeros(6, 250, dtype=torch.float64), 250.0)[1])
    for reading in (twin.sensing.clean_uv(potential_mv).square().mean(), bold.square().sum()):
        (slope,) = torch.autograd.grad(reading, amplitude, retain_graph=True)
        assert bool(slope.isfinite().all())
        assert bool((slope != 0).any())


def test_scalp_channels_make_a_twin_that_answers_in_eeg():
    twin = patient(settle_s=0.1)
    cap = Montage((*twin.montage.contacts, *CAP.contacts), CAP.channels, twin.montage.frame)
    field = torch.zeros(11, 6, dtype=torch.float64)
    field[8:] = average_reference(torch.rand(3, 6, generator=generator(3), dtype=torch.float64))
    silent_contacts = torch.zeros(6, 3, dtype=torch.float64)  # no current enters through the cap
    drive = replace(twin.drive, potential_mv_per_ma=torch.cat([twin.drive.potential_mv_per_ma, silent_contacts], -1))
    heard = replace(twin, montage=cap, drive=drive, sensing=lead_field_sensing(cap, field))
    response, _ = heard.respond(heard.start((), generator(0)), no_stimulus(cap), generator(1))
    assert [channel.name for channel in response.montage.channels] == ["Fz", "Cz", "Oz"]
    assert float(response.signal_uv.sum(0).abs().max()) < 1e-9
