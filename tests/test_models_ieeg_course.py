"""Steps of circuits with a hand-made gradient, against the plain ones."""

import pytest
import torch

from stimopt.models.ieeg_course import QuickCourse, course
from stimopt.tensors import generator

CIRCUITS, ROWS, SOURCES, POPULATIONS, STEPS, STEP_HZ = 3, 5, 4, 3, 20, 250.0


def numbers(seed=0, rows=ROWS, dtype=torch.float64):
    """Both, own, shared, what arrives, and pulses: some between two steps, some rows and steps without any."""
    source = generator(seed, "course")

    def drawn(*shape, size=0.3):
        return (size * torch.randn(*shape, generator=source, dtype=dtype)).requires_grad_()

    shared = {name: drawn(POPULATIONS) for name in ("past_bound", "sending", "listening")}
    own = {"size": drawn(CIRCUITS, SOURCES, POPULATIONS), "tie": drawn(CIRCUITS, SOURCES, SOURCES)}
    both = {
        "rate": (3.0 + drawn(CIRCUITS, 1, POPULATIONS).detach()).requires_grad_(),
        "bias": drawn(CIRCUITS, SOURCES, POPULATIONS),
        "hearing": drawn(CIRCUITS, POPULATIONS, size=1.0),
        "coupling": drawn(CIRCUITS, POPULATIONS, POPULATIONS),
        "reading": drawn(CIRCUITS, POPULATIONS),
    }
    arriving = torch.rand(CIRCUITS, rows, SOURCES, generator=source, dtype=dtype).requires_grad_()
    pulses = torch.rand(CIRCUITS, rows, STEPS, generator=source, dtype=dtype)
    pulses = torch.where(torch.rand(pulses.shape, generator=source) < 0.3, pulses, 0.0)
    pulses[:, 0], pulses[..., STEPS // 2 :] = 0.0, 0.0
    return both, own, shared, arriving, pulses


def leaves(given):
    return {**given[0], **given[1], **given[2], "arriving": given[3]}


def read_and_slopes(play, given, weight):
    read = play(*given, STEP_HZ)
    slopes = torch.autograd.grad((weight * read).sum(), list(leaves(given).values()))
    return read.detach(), dict(zip(leaves(given), slopes, strict=True))


def test_the_quick_course_and_its_gradient_are_those_of_the_plain_one():
    given, quick = numbers(), QuickCourse()
    weight = torch.randn(CIRCUITS, ROWS, SOURCES, STEPS, generator=generator(1, "weight"), dtype=torch.float64)
    plain, slopes = read_and_slopes(course, given, weight)
    assert plain.abs().amax() > 0.01
    for _ in range(2):  # with memory of its own, and with that of the call before
        found, quick_slopes = read_and_slopes(quick, given, weight)
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-14)
        for name, slope in slopes.items():
            assert slope.abs().amax() > 1e-5, name
            torch.testing.assert_close(quick_slopes[name], slope, rtol=1e-11, atol=1e-13)


def test_the_quick_gradient_is_that_of_differences():
    given, quick = numbers(), QuickCourse()
    _, slopes = read_and_slopes(quick, given, 1.0)
    for name, value in leaves(given).items():
        away = torch.randn(value.shape, generator=generator(2, name), dtype=torch.float64)
        moved = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                value.add_(step * away)
                moved.append(quick(*given, STEP_HZ).sum())
                value.sub_(step * away)
        torch.testing.assert_close((slopes[name] * away).sum(), (moved[0] - moved[1]) / 2e-6, rtol=1e-6, atol=1e-9)


def test_other_rows_and_another_dtype_ask_for_other_memory():
    quick = QuickCourse()
    for rows, dtype in ((5, torch.float64), (2, torch.float64), (2, torch.float32)):
        given = numbers(rows=rows, dtype=dtype)
        torch.testing.assert_close(quick(*given, STEP_HZ), course(*given, STEP_HZ))


def test_a_gradient_after_the_next_call_is_refused():
    """It would be of the next call's steps."""
    given, quick = numbers(), QuickCourse()
    first = quick(*given, STEP_HZ)
    quick(*numbers(seed=1), STEP_HZ)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()
