"""Connectomes made at run time follow the distance rule; files are read or refused."""

import pytest
import torch

from stimopt.errors import ConfigError, DataError, ShapeError
from stimopt.simulators import (
    Connectome,
    JansenRit,
    Network,
    ball_connectome,
    exponential_distance_connectome,
    jansen_rit_patient,
    read_connectome,
    two_shafts,
)
from stimopt.tensors import generator


def test_regions_of_a_ball_keep_their_distance_and_lie_within_it():
    connectome = ball_connectome(16, seed=3)
    apart = connectome.tract_mm + 1e3 * torch.eye(16, dtype=torch.float64)
    assert float(apart.min()) >= 6.0
    assert float(connectome.centre_mm.norm(dim=-1).max()) <= 15.0


def test_without_spread_weights_halve_every_36_tenths_of_a_millimetre():
    places = torch.tensor([[0.0, 0, 0], [5.0, 0, 0], [8.648, 0, 0]], dtype=torch.float64)
    weights = exponential_distance_connectome(places, generator(0), log_spread=0.0).weights
    assert abs(float(weights[0, 1] / weights[0, 2]) - 2.0) < 1e-3  # ln 2 / 0.19 per mm = 3.648 mm
    assert not weights.diagonal().any()


def test_weights_scatter_lognormally_around_the_rule_and_are_the_same_both_ways():
    connectome = ball_connectome(120, seed=1)
    assert torch.equal(connectome.weights, connectome.weights.mT)
    row, column = torch.triu_indices(120, 120, 1)
    residual = (connectome.weights.log() + 0.19 * connectome.tract_mm)[row, column]
    assert abs(float(residual.mean())) < 0.05  # 7140 pairs: 0.012 standard error
    assert abs(float(residual.std()) - 1.0) < 0.05


def test_received_weights_add_up_to_one():
    total = ball_connectome(10, seed=2).received.sum(-1)
    torch.testing.assert_close(total, torch.ones(10, dtype=torch.float64))


def test_one_seed_makes_one_connectome():
    assert torch.equal(ball_connectome(12, seed=5).weights, ball_connectome(12, seed=5).weights)
    assert not torch.equal(ball_connectome(12, seed=5).weights, ball_connectome(12, seed=6).weights)


def test_a_network_refuses_weights_of_other_regions():
    with pytest.raises(ShapeError, match="one connectome"):
        Network(JansenRit(torch.full((3,), 120.0)), torch.zeros(4, 4))


def test_contacts_of_a_shaft_are_three_and_a_half_millimetres_apart_beside_the_target():
    targets = torch.tensor([[0.0, 0, 0], [10.0, 5.0, 0.0]], dtype=torch.float64)
    montage = two_shafts(targets, 12, generator(1))
    first = montage.contact_position_mm[:6]
    torch.testing.assert_close((first[1:] - first[:-1]).norm(dim=-1), torch.full((5,), 3.5, dtype=torch.float64))
    nearest = float((first - targets[0]).norm(dim=-1).min())
    assert 2.0 <= nearest <= (2.0**2 + 1.75**2) ** 0.5 + 1e-9
    assert {c.area_cm2 for c in montage.contacts} == {0.05}
    assert {c.kind for c in montage.contacts} == {"depth"}


def test_too_few_contacts_or_regions_are_refused():
    with pytest.raises(ConfigError, match="contacts is 3"):
        jansen_rit_patient(contacts=3)
    with pytest.raises(ConfigError, match="regions is 2"):
        jansen_rit_patient(regions=2)


@pytest.mark.parametrize(("file", "regions"), [("tvb76.nc", 76), ("tvb68.nc", 68)])
def test_a_recorded_connectome_is_read_with_places_in_millimetres(recordings, file, regions):
    connectome = read_connectome(recordings / "connectomes" / file)
    assert len(connectome.names) == regions
    assert float(connectome.tract_mm.max()) > 80.0  # across a human brain
    assert 120.0 < float(torch.cdist(connectome.centre_mm, connectome.centre_mm).max()) < 220.0
    assert not connectome.weights.diagonal().any()


def test_a_connectome_without_places_says_so_with_nan(recordings):
    connectome = read_connectome(recordings / "connectomes" / "dTOR_glasser370.nc")
    assert bool(connectome.centre_mm.isnan().all())
    assert bool(connectome.tract_mm.isfinite().all())


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_connectome(tmp_path / "none.nc")
    (tmp_path / "cut.nc").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    with pytest.raises(DataError, match="no complete netCDF"):
        read_connectome(tmp_path / "cut.nc")


def test_weights_that_are_logarithms_are_refused(recordings):
    with pytest.raises(DataError, match="logarithms"):
        read_connectome(recordings / "connectomes" / "hcp_schaefer100.nc")


def test_parts_of_a_connectome_must_fit():
    with pytest.raises(ShapeError, match="2 regions"):
        Connectome(("a", "b"), torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(3, 3))
