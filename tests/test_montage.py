import math

import pytest
import torch

from stimopt.errors import MontageError
from stimopt.montage import Channel, Contact, Montage, monopolar


def shaft(count=4, name="A"):
    return [Contact(f"{name}{i}", (3.5 * i, 0.0, 1.0), 0.05, "depth", name) for i in range(1, count + 1)]


def test_unknown_places_are_equal_to_unknown_places():
    one, other = (Contact("A1", (float("nan"),) * 3, float("nan")) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Contact("A1", (0.0, 0.0, 0.0))
    assert monopolar([one]) == monopolar([other])


def test_a_bipolar_channel_reads_the_difference_at_the_middle():
    montage = monopolar(shaft()).bipolar()
    assert [c.name for c in montage.channels] == ["A1-A2", "A2-A3", "A3-A4"]
    potentials = torch.tensor([1.0, 5.0, 2.0, 2.0], dtype=torch.float64)
    assert (montage.channel_matrix @ potentials).tolist() == [-4.0, 3.0, 0.0]
    assert montage.channel_position_mm[0].tolist() == [5.25, 0.0, 1.0]


def test_pairs_stay_within_a_shaft():
    montage = monopolar(shaft(2, "A") + shaft(2, "B"))
    assert montage.neighbour_pairs() == ("A1-A2", "B1-B2")


def test_an_unknown_area_is_nan():
    assert math.isnan(monopolar([Contact("A1")]).area_cm2.item())


@pytest.mark.parametrize("name", ["", "A-1"])
def test_a_contact_needs_a_plain_name(name):
    with pytest.raises(MontageError, match="rename"):
        Contact(name)


def test_doubled_and_missing_names_are_refused():
    with pytest.raises(MontageError, match="positive area"):
        Contact("A1", area_cm2=0.0)
    with pytest.raises(MontageError, match="same name"):
        monopolar([Contact("A1"), Contact("A1")])
    with pytest.raises(MontageError, match="not in the montage"):
        Montage((Contact("A1"),), (Channel("x", "A2"),))
    with pytest.raises(MontageError, match="same name"):
        Montage((Contact("A1"),), (Channel("x", "A1"), Channel("x", "A1")))
