"""Electrodes keep their data sheets, stay in the head, pass near their targets; schedules run as hospitals run them."""

import gzip
from dataclasses import replace

import pandas as pd
import pytest
import torch

from stimopt.errors import ConfigError, MontageError
from stimopt.montage import Montage
from stimopt.simulators.connectome import ball_connectome, scattered_centres
from stimopt.simulators.implants import (
    DBS_LEAD,
    ECOG_STRIP,
    MISS_MM,
    SEEG_SHAFT,
    Head,
    head_around,
    implant,
    lead,
    shaft,
    strip,
)
from stimopt.simulators.single_pulses import MAYO, UTRECHT, PulseSchedule, single_pulse_schedule
from stimopt.tensors import generator

MODELS = {"depth": SEEG_SHAFT, "subdural": ECOG_STRIP, "dbs": DBS_LEAD}
SEEDS = range(12)


def brain() -> torch.Tensor:
    """Sixty regions spread as wide as a human brain: 140 mm from front to back, less across and upward."""
    unit = scattered_centres(60, generator(0), radius_mm=70.0, apart_mm=12.0)
    return unit * torch.tensor([0.9, 1.0, 0.75], dtype=torch.float64)


def implanted_brain(seed: int) -> Montage:
    targets = torch.randperm(60, generator=generator(seed))[:8].tolist()
    return implant(brain(), targets, generator(seed, "implant"), strips=2, leads=2)


def electrodes(montage: Montage) -> dict[str, torch.Tensor]:
    names = [contact.shaft for contact in montage.contacts]
    return {name: montage.contact_position_mm[[n == name for n in names]] for name in dict.fromkeys(names)}


@pytest.mark.parametrize(
    ("model", "area_cm2"),
    [(SEEG_SHAFT, 0.0503), (ECOG_STRIP, 0.0415), (DBS_LEAD, 0.0598)],  # 0.8 x 2, 2.3 across, 1.27 x 1.5 mm
)
def test_contacts_have_the_surface_of_their_data_sheet(model, area_cm2):
    assert abs(model.area_cm2 - area_cm2) < 5e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_neighbours_on_an_electrode_are_a_pitch_apart(seed):
    montage = implanted_brain(seed)
    kinds = {contact.shaft: contact.kind for contact in montage.contacts}
    for name, places in electrodes(montage).items():
        apart = (places[1:] - places[:-1]).norm(dim=-1)
        pitch = MODELS[kinds[name]].pitch_mm
        torch.testing.assert_close(apart, torch.full_like(apart, pitch), rtol=0, atol=1e-8)  # places are kept to 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_electrodes_carry_as_many_contacts_as_are_sold(seed):
    montage = implanted_brain(seed)
    kinds = {contact.shaft: contact.kind for contact in montage.contacts}
    assert all(len(places) in MODELS[kinds[name]].counts for name, places in electrodes(montage).items())
    assert {contact.area_cm2 for contact in montage.contacts} == {model.area_cm2 for model in MODELS.values()}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_contact_lies_outside_the_head(seed):
    assert bool(head_around(brain()).inside(implanted_brain(seed).contact_position_mm).all())


@pytest.mark.parametrize("regions", [4, 6, 16, 30])
def test_electrodes_fit_into_a_small_ball_of_tissue(regions):
    for seed in range(5):
        centre_mm = ball_connectome(regions, seed=seed).centre_mm
        montage = implant(centre_mm, list(range(4)), generator(seed), strips=1, leads=1)
        assert bool(head_around(centre_mm).inside(montage.contact_position_mm).all())


def test_every_region_lies_in_its_head_with_a_margin():
    centre_mm = brain()
    assert bool(head_around(centre_mm, margin_mm=0.0).inside(centre_mm).all())
    wide, tight = head_around(centre_mm, margin_mm=3.0), head_around(centre_mm, margin_mm=0.0)
    torch.testing.assert_close(wide.semi_mm - tight.semi_mm, torch.full_like(wide.semi_mm, 3.0))


def test_shafts_miss_their_targets_by_as_much_as_published():
    head = Head(torch.zeros(3, dtype=torch.float64), torch.full((3,), 80.0, dtype=torch.float64))
    target = torch.tensor([30.0, 5.0, 0.0], dtype=torch.float64)
    missed = []
    for seed in range(300):
        places = torch.tensor([c.position_mm for c in shaft("A", target, head, generator(seed))], dtype=torch.float64)
        along = (places[1] - places[0]) / (places[1] - places[0]).norm()
        missed.append(torch.linalg.cross(target - places[0], along).norm())
    # a median of 300 draws of log spread 0.5 has a standard error of 3.6 %; the bar is three of them
    assert abs(float(torch.stack(missed).median()) / MISS_MM - 1) < 0.11


def test_the_target_lies_beside_the_deep_contacts_of_a_shaft_and_a_lead():
    head, target = head_around(brain()), brain()[0]
    for make in (shaft, lead):
        contacts = make("A", target, head, generator(3))
        away = (torch.tensor([c.position_mm for c in contacts], dtype=torch.float64) - target).norm(dim=-1)
        assert int(away.argmin()) in (1, 2)


def test_a_strip_lies_on_the_surface_over_its_target():
    head, target = head_around(brain()), brain()[3]
    places = torch.tensor([c.position_mm for c in strip("SA", target, head, generator(1))], dtype=torch.float64)
    depth = ((places - head.centre_mm) / head.semi_mm).norm(dim=-1)
    torch.testing.assert_close(depth, torch.ones_like(depth), rtol=0, atol=1e-9)
    nearest = float((places - head.surface(target)).norm(dim=-1).min())
    assert nearest < 1e-8  # its middle contact


def test_one_seed_makes_one_implant():
    assert implanted_brain(2) == implanted_brain(2)
    assert implanted_brain(2) != implanted_brain(3)


def test_what_cannot_be_implanted_is_refused():
    with pytest.raises(ConfigError, match="at least one electrode"):
        implant(brain(), [], generator(0))
    with pytest.raises(MontageError, match="no centres"):
        implant(torch.full((4, 3), torch.nan, dtype=torch.float64), [0], generator(0))
    long = replace(ECOG_STRIP, counts=(32,))
    with pytest.raises(MontageError, match="does not fit"):
        strip("SA", brain()[0], head_around(brain()), generator(0), model=long)


def test_a_schedule_gives_every_pair_its_pulses_in_order():
    montage = implanted_brain(1)
    schedule = single_pulse_schedule(montage, generator(0), protocol=MAYO)
    assert [block.site for block in schedule.blocks] == list(montage.neighbour_pairs())
    assert {len(block.onset_s) for block in schedule.blocks} == {10}
    assert bool((schedule.onset_s.diff() > 0).all())


def test_utrecht_reverses_the_poles_half_way():
    schedule = single_pulse_schedule(implanted_brain(1), generator(0), protocol=UTRECHT, sites=3)
    first, second = schedule.blocks[:2]
    assert second.site == "-".join(reversed(first.site.split("-")))
    assert (len(first.onset_s), len(second.onset_s)) == (5, 5)
    assert torch.tensor(first.onset_s).diff().allclose(torch.tensor(5.0))


def test_pulses_of_a_schedule_are_single_and_carry_the_current():
    montage = implanted_brain(1)
    schedule = single_pulse_schedule(montage, generator(0), sites=4)
    stimuli = schedule.stimuli(montage)
    assert stimuli.batch_shape == schedule.onset_s.shape == (40,)
    assert bool((stimuli.pulses == 1).all())
    assert set(stimuli.amplitude_ma.abs().amax(-1).tolist()) <= {MAYO.current_ma, MAYO.reduced_ma}
    assert bool((stimuli.amplitude_ma.sum(-1) == 0).all())
    largest = float(stimuli.phase_charge_uc.abs().max())
    assert abs(largest - 1.2) < 1e-12  # 6 mA for 200 us


def test_a_schedule_survives_being_plain_values():
    schedule = single_pulse_schedule(implanted_brain(1), generator(0), sites=4)
    assert PulseSchedule.from_dict(schedule.to_dict()) == schedule


def test_more_sites_than_pairs_are_refused():
    with pytest.raises(ConfigError, match="neighbouring pairs"):
        single_pulse_schedule(implanted_brain(1), generator(0), sites=1000)


def recorded(recordings, name: str) -> pd.DataFrame:
    with gzip.open(recordings / "spes_designs" / name) as file:
        table = pd.read_csv(file, low_memory=False)
    return table.assign(patient=table.file.str.extract("(sub-[A-Za-z0-9]+)")[0])


@pytest.mark.parametrize(("protocol", "dataset"), [(UTRECHT, "ds004080"), (MAYO, "ds004696")])
def test_schedules_look_like_recorded_ones(recordings, protocol, dataset):
    events = recorded(recordings, "events_all.csv.gz").dropna(subset=["electrical_stimulation_site"])
    events = events[events.dataset == dataset].sort_values(["file", "onset"])
    site, file = events.electrical_stimulation_site, events.file
    same = (site == site.shift()) & (file == file.shift())
    ours = single_pulse_schedule(implanted_brain(1), generator(0), protocol=protocol)
    waits = torch.cat([torch.tensor(block.onset_s, dtype=torch.float64).diff() for block in ours.blocks])
    theirs = events.onset.groupby(file).diff()[same]
    assert abs(float(waits.median()) / theirs.median() - 1) < 0.05  # Mayo: 4.37 s recorded, 4.4 s chosen
    assert abs(float(waits.log().std()) - theirs[theirs > 0].map(torch.tensor).map(torch.log).map(float).std()) < 0.35
    length = events.groupby((~same).cumsum()).size()
    assert length.median() in {len(block.onset_s) for block in ours.blocks}
    pair = site.str.split("-", expand=True)
    assert (pair[0].str.extract(r"(\D+)")[0] == pair[1].str.extract(r"(\D+)")[0]).mean() > 0.99  # on one electrode


def test_recorded_shafts_have_our_pitch_and_lengths(recordings):
    rows = recorded(recordings, "electrodes_all.csv.gz").drop_duplicates(["patient", "name"])
    rows = rows[rows.dataset.isin(["ds004696", "ds004977"])]
    rows = rows.assign(
        shaft=rows.name.str.extract(r"^(\D+)")[0], number=rows.name.str.extract(r"(\d+)$")[0].astype(float)
    )
    rows = rows.sort_values(["patient", "shaft", "number"])
    next_to = (rows.number.diff() == 1) & (rows["shaft"] == rows["shaft"].shift())
    apart = rows[["x", "y", "z"]].diff().pow(2).sum(axis=1, skipna=False).pow(0.5)[next_to]
    assert abs(apart.median() - SEEG_SHAFT.pitch_mm) < 0.1  # 3.5 mm, localised in images
    counts = rows.groupby(["patient", "shaft"]).size()
    assert counts[counts > 3].max() == max(SEEG_SHAFT.counts)
