"""Types and shapes are checked while tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError
from typechecked import FIRST_CALLS, Test

from stimopt.models.ieeg_blended import seen_share
from stimopt.montage import Contact
from stimopt.tensors import generator

THREE, NONE_OF_FIVE = torch.zeros(3), torch.zeros(0, 5)  # one number of contacts is asked for


def test_what_is_of_another_type_or_shape_is_refused():
    with pytest.raises(TypeCheckError, match=r"stimopt\.tensors\.generator"):
        generator("one")
    with pytest.raises(TypeCheckError, match=r"Contact\.__init__"):
        Contact(1)
    with pytest.raises(TypeCheckError, match="sites"):
        seen_share(THREE, NONE_OF_FIVE)


def test_later_calls_are_not_checked_and_those_of_the_next_test_are():
    for _ in range(FIRST_CALLS):
        seen_share(THREE, torch.zeros(0, 3))
    seen_share(THREE, NONE_OF_FIVE)
    Test.number += 1
    with pytest.raises(TypeCheckError):
        seen_share(THREE, NONE_OF_FIVE)
