"""Contracts as executable checks, for our own suite and for other people's simulators, models and policies.

Each check runs an implementation and raises `ContractError` naming the clause that it
breaks. A check that passes shows no more than what it tried: hand it stimuli that matter.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from .errors import ContractError
from .forecaster import Context, Forecast, Forecaster
from .history import History
from .objective import Objective
from .policy import Policy
from .response import Response
from .safety import Envelope
from .space import StimulationSpace
from .stimulus import Stimulus
from .system import State, System, sliced
from .tensors import generator, map_tensors

_WINDOWS = 3
_SAME = {
    torch.float64: 1e-7,
    torch.float32: 1e-3,
}  # of the signal's size: sums in another order, then a window of chaos


def check_system(system: System, stimuli: Stimulus, *, differentiable: bool = False) -> None:
    """Hold a system to its contract.

    Args:
        system: Under test.
        stimuli: Two or more along one batch axis; at least two of them differ.
        differentiable: Whether the system claims gradients with respect to the stimulus's current.

    Raises:
        ContractError: Naming the broken clause.
    """
    rows = _rows(stimuli)
    start = system.start((rows,), generator(0, "check", "start"))
    _require(all(t.shape[:1] == (rows,) for t in start.values()), "every tensor of the state begins with the batch")
    first, after = system.respond(start, stimuli, generator(0, "check", 0))
    kept = {name: tensor.clone() for name, tensor in start.items()}
    again, after_again = system.respond(start, stimuli, generator(0, "check", 0))
    _require(_equal_states(kept, start), "a state handed in is not changed")
    _require(torch.equal(first.signal_uv, again.signal_uv), "same state, stimulus and seed, same response")
    _require(_equal_states(after, after_again), "same state, stimulus and seed, same state after")
    _require(first.batch_shape == stimuli.batch_shape, "batch shape is kept")
    _require(
        [c.name for c in first.montage.channels] == [c.name for c in system.montage.channels],
        "responses carry the system's channels",
    )
    if system.window_s > 0:
        samples = round(system.window_s * first.rate_hz)
        _require(first.signal_uv.shape[-1] == samples, f"a window holds window_s * rate_hz = {samples} samples")
    _require({*after} == {*start}, "the state keeps its names")
    _require(all(after[n].shape == start[n].shape for n in start), "the state keeps its shapes")
    _check_batching(system, start, stimuli, first)
    _check_windows(system, after, stimuli)
    if differentiable:
        _check_gradient(system, start, stimuli)


def _check_batching(system: System, start: State, stimuli: Stimulus, batched: Response) -> None:
    alone, _ = system.respond(sliced(start, slice(1, 2)), stimuli[1:2], generator(0, "check", 0))
    _require(_close(alone.signal_uv[0], batched.signal_uv[1]), "rows of a batch do not see each other")
    single = system.start((), generator(0, "check", "one"))
    reply, _ = system.respond(single, stimuli[0], generator(0, "check", "one"))
    _require(reply.batch_shape == torch.Size(()), "a batch of shape () is answered with shape ()")


def _check_windows(system: System, state: State, stimuli: Stimulus) -> None:
    """The state carries: continued windows stay finite, and what happened before matters or can be stored."""
    saved = {name: tensor.detach().clone() for name, tensor in state.items()}
    last = None
    for window in range(1, _WINDOWS):
        last, state = system.respond(state, stimuli, generator(0, "check", window))
        _require(
            bool(torch.isfinite(last.signal_uv).all()), f"responses stay finite over windows (window {window + 1})"
        )
        _require(all(bool(torch.isfinite(t).all()) for t in state.values()), "the state stays finite over windows")
    for window in range(1, _WINDOWS):
        resumed, saved = system.respond(saved, stimuli, generator(0, "check", window))
    _require(last is None or torch.equal(last.signal_uv, resumed.signal_uv), "a stored state resumes where it was")


def _check_gradient(system: System, start: State, stimuli: Stimulus) -> None:
    amplitude = stimuli.amplitude_ma.detach().clone().requires_grad_()
    _, state = system.respond(start, replace(stimuli, amplitude_ma=amplitude), generator(0, "check", 0))
    second, _ = system.respond(state, stimuli, generator(0, "check", 1))
    _require(second.signal_uv.requires_grad, "gradients pass from one window's stimulus into the next window")
    (slope,) = torch.autograd.grad(second.signal_uv.square().sum(), amplitude)
    _require(bool(torch.isfinite(slope).all()), "gradients through two windows are finite")
    _require(bool((slope != 0).any()), "gradients through two windows are not all zero")


def check_forecaster(
    forecaster: Forecaster, context: Context, stimuli: Stimulus, *, differentiable: bool = False
) -> None:
    """Hold a forecaster to its contract.

    Args:
        forecaster: Under test.
        context: With the batch of `stimuli`.
        stimuli: Two or more along one batch axis.
        differentiable: Whether the forecaster claims gradients with respect to the stimulus's current.

    Raises:
        ContractError: Naming the broken clause.
    """
    _rows(stimuli)
    with torch.no_grad():
        forecast = forecaster.forecast(context, stimuli)
        _require(torch.equal(forecast.mean, forecaster.forecast(context, stimuli).mean), "same question, same forecast")
        _check_forecast(forecast, stimuli)
        alone = forecaster.forecast(context[1:2], stimuli[1:2])
        _require(_close(alone.mean[0], forecast.mean[1]), "rows of a batch do not see each other")
        one = map_tensors(context, lambda tensor: tensor[0])
        spread = forecaster.forecast(one, stimuli)
        _require(spread.mean.shape == forecast.mean.shape, "one context serves a batch of stimuli")
    if differentiable:
        amplitude = stimuli.amplitude_ma.detach().clone().requires_grad_()
        mean = forecaster.forecast(context, replace(stimuli, amplitude_ma=amplitude)).mean
        _require(mean.requires_grad, "the forecast is differentiable in the stimulus")
        (slope,) = torch.autograd.grad(mean.square().sum(), amplitude)
        _require(bool(torch.isfinite(slope).all() and (slope != 0).any()), "its gradient is finite and not all zero")


def _check_forecast(forecast: Forecast, stimuli: Stimulus) -> None:
    shape = forecast.mean.shape
    _require(shape[:-2] == stimuli.batch_shape, "the mean has the batch of the stimuli")
    _require(forecast.template.batch_shape == stimuli.batch_shape, "the template has the batch of the stimuli")
    _require(bool(torch.isfinite(forecast.mean).all()), "the mean is finite")
    draws = forecast.rsample(4, generator(1, "check"))
    _require(draws.shape == (4, *shape), "rsample prepends a sample axis and keeps the rest")
    _require(
        torch.equal(draws, forecast.rsample(4, generator(1, "check"))), "the same generator draws the same samples"
    )
    _require(
        not torch.equal(draws, forecast.rsample(4, generator(2, "check"))), "another generator draws other samples"
    )
    low, middle, high = (forecast.quantile(q) for q in (0.1, 0.5, 0.9))
    _require(low.shape == shape, "a quantile has the shape of the mean")
    _require(bool((low <= middle).all() and (middle <= high).all()), "quantiles rise with q")
    _require(bool((low < high).any()), "the forecast admits doubt: its quantiles differ")
    density = forecast.log_prob(forecast.mean)
    _require(density.shape == stimuli.batch_shape, "log_prob has one number per row")
    _require(bool(torch.isfinite(density).all()), "log_prob is finite at the mean")


def check_policy(
    policy: Policy, space: StimulationSpace, envelope: Envelope, history: History, *, seeds: int = 3
) -> None:
    """Hold a policy to its contract, on one history.

    Args:
        policy: Under test.
        space: The space that it searches.
        envelope: The envelope that it was given.
        history: The trials so far, none or more.
        seeds: How many seeds to try.

    Raises:
        ContractError: Naming the broken clause.
    """
    last = float(history.times_s[-1]) if len(history) else 0.0
    now_s = max(history.next_time_s, last)
    for seed in range(seeds):
        stimulus = policy.propose(history, generator(seed, "check"))
        again = policy.propose(history, generator(seed, "check"))
        _require(stimulus.batch_shape == torch.Size(()), "a proposal has batch shape ()")
        _require(_equal_stimuli(stimulus, again), "same history and seed, same proposal")
        _require(bool(envelope.allowed(stimulus, history, now_s)), "the envelope allows every proposal")
        _check_inside(space, stimulus)
    if len(history):
        kept = policy.recommend(history, generator(0, "check"))
        _require(kept.batch_shape == torch.Size(()), "a recommendation has batch shape ()")
        _require(
            _equal_stimuli(kept, policy.recommend(history, generator(0, "check"))), "same history, same recommendation"
        )


def _check_inside(space: StimulationSpace, stimulus: Stimulus) -> None:
    if bool(stimulus.silent) and stimulus.sensory is None:
        return  # no stimulation is always a choice, and lies in no space
    try:
        unit = space.locate(stimulus)
    except ValueError as error:
        raise ContractError(f"a proposal lies inside the space: {error}") from error
    _require(bool(((unit >= 0) & (unit <= 1)).all()), "a proposal lies inside the space")
    _require(torch.allclose(space.snap(unit), unit, atol=1e-9), "a proposal takes allowed values only")


def check_objective(objective: Objective, response: Response, stimulus: Stimulus) -> None:
    """Hold an objective to its contract.

    Args:
        objective: Under test.
        response: Two or more windows along one batch axis.
        stimulus: As many stimuli.

    Raises:
        ContractError: Naming the broken clause.
    """
    rows = _rows(stimulus)
    score = objective(response, stimulus)
    _require(score.shape == stimulus.batch_shape, "one score per trial")
    _require(bool(torch.isfinite(score).all()), "scores are finite")
    _require(torch.equal(score, objective(response, stimulus)), "same trial, same score")
    alone = objective(response[1:2], stimulus[1:2])
    _require(_close(alone[0], score[1]), "rows of a batch do not see each other")
    drawn = map_tensors(response, lambda tensor: torch.stack([tensor, tensor]))
    _require(
        _broadcast(objective(drawn, stimulus), (2, rows)), "a response may carry leading axes that a stimulus lacks"
    )


def _broadcast(score: Tensor, shape: tuple[int, ...]) -> bool:
    return score.shape in (torch.Size(shape), torch.Size(shape[-1:]))  # one that reads only the stimulus has its shape


def _rows(stimuli: Stimulus) -> int:
    if len(stimuli.batch_shape) != 1 or stimuli.batch_shape[0] < 2:
        raise ContractError(
            f"a check needs two or more stimuli along one batch axis, got batch {list(stimuli.batch_shape)}; "
            "concatenate some."
        )
    return stimuli.batch_shape[0]


def _require(holds: bool, clause: str) -> None:
    if not holds:
        raise ContractError(f"broken clause: {clause}.")


def _close(one: Tensor, other: Tensor) -> bool:
    size = float(other.abs().max()) if other.numel() else 0.0
    tolerance = _SAME.get(other.dtype, 1e-2) * (size if math.isfinite(size) else 0.0)
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)


def _equal_states(one: State, other: State) -> bool:
    return {*one} == {*other} and all(torch.equal(one[name], other[name]) for name in one)


def _equal_stimuli(one: Stimulus, other: Stimulus) -> bool:
    fields = ("amplitude_ma", "frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")
    same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in fields)
    if one.sensory is None or other.sensory is None:
        return same and one.sensory is other.sensory
    felt = ("intensity", "frequency_hz", "duration_s", "onset_s", "features")
    return same and all(torch.equal(getattr(one.sensory, name), getattr(other.sensory, name)) for name in felt)
