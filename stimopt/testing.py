"""Contracts as executable checks, for our own suite and for other people's simulators, models and policies.

Each check runs an implementation and raises `ContractError` naming the clause that it
breaks. A check that passes shows no more than what it tried: hand it stimuli that matter.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .errors import ContractError, ShapeError
from .forecaster import Context, Forecast, Forecaster
from .history import History
from .montage import Montage
from .objective import Objective
from .policy import Policy
from .response import Response
from .safety import Envelope
from .space import StimulationSpace
from .stimulus import Stimulus
from .system import State, System, sliced
from .tensors import generator, map_tensors

_WINDOWS = 3
_DRAWS = 64  # windows drawn to see whether quantiles and samples are of one forecast
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
    with _own_randomness():
        start = system.start((rows,), generator(0, "check", "start"))
    _require(
        _equal_states(start, system.start((rows,), generator(0, "check", "start"))), "same shape and seed, same start"
    )
    _require(all(t.shape[:1] == (rows,) for t in start.values()), "every tensor of the state begins with the batch")
    kept = {name: tensor.clone() for name, tensor in start.items()}
    with _own_randomness():
        first, after = system.respond(start, stimuli, generator(0, "check", 0))
    _require(_finite_response(first), "responses stay finite over windows (window 1)")
    again, after_again = system.respond(start, stimuli, generator(0, "check", 0))
    _require(_equal_states(kept, start), "a state handed in is not changed")
    _require(_equal_responses(first, again), "same state, stimulus and seed, same response")
    _require(_equal_states(after, after_again), "same state, stimulus and seed, same state after")
    _check_shapes(system, start, stimuli, first, after)
    _require(
        _refuses_shape(lambda: system.respond(start, stimuli[:1], generator(0, "check", 0))),
        "a stimulus whose batch is not the state's is refused with a ShapeError",
    )
    _check_batching(system, start, stimuli, first)
    _check_windows(system, after, stimuli)
    if differentiable:
        _check_gradient(system, start, stimuli)


def _check_shapes(system: System, start: State, stimuli: Stimulus, first: Response, after: State) -> None:
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


def _check_batching(system: System, start: State, stimuli: Stimulus, batched: Response) -> None:
    alone, _ = system.respond(sliced(start, slice(1, 2)), stimuli[1:2], generator(0, "check", 0))
    _require(_close_responses(alone[0], batched[1]), "rows of a batch do not see each other")
    single = system.start((), generator(0, "check", "one"))
    reply, _ = system.respond(single, stimuli[0], generator(0, "check", "one"))
    _require(reply.batch_shape == torch.Size(()), "a batch of shape () is answered with shape ()")


def _check_windows(system: System, state: State, stimuli: Stimulus) -> None:
    """The state carries: continued windows stay finite, and what happened before matters or can be stored."""
    saved = {name: tensor.detach().clone() for name, tensor in state.items()}
    last = None
    for window in range(1, _WINDOWS):
        last, state = system.respond(state, stimuli, generator(0, "check", window))
        _require(_finite_response(last), f"responses stay finite over windows (window {window + 1})")
        _require(all(bool(torch.isfinite(t).all()) for t in state.values()), "the state stays finite over windows")
    for window in range(1, _WINDOWS):
        resumed, saved = system.respond(saved, stimuli, generator(0, "check", window))
    _require(last is None or _equal_responses(last, resumed), "a stored state resumes where it was")


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
        with _own_randomness():
            forecast = forecaster.forecast(context, stimuli)
            forecast.rsample(1, generator(1, "check"))
        _require(bool(torch.isfinite(forecast.mean).all()), "the mean is finite")
        _require(torch.equal(forecast.mean, forecaster.forecast(context, stimuli).mean), "same question, same forecast")
        _check_forecast(forecast, stimuli)
        alone = forecaster.forecast(context[1:2], stimuli[1:2])
        _require(_close(alone.mean[0], forecast.mean[1]), "rows of a batch do not see each other")
        _check_common_noise(forecaster, context, stimuli, forecast)
        one = map_tensors(context, lambda tensor: tensor[0])
        spread = forecaster.forecast(one, stimuli)
        _require(spread.mean.shape == forecast.mean.shape, "one context serves a batch of stimuli")
        _require(_close(spread.mean[0], forecast.mean[0]), "one context serves a batch of stimuli as each alone")
        strange = _renamed(stimuli.montage)
        _require(
            _refuses_shape(
                lambda: forecaster.forecast(replace(context, montage=strange), replace(stimuli, montage=strange))
            ),
            "a montage that it was not fitted on is refused with a ShapeError",
        )
    if differentiable:
        amplitude = stimuli.amplitude_ma.detach().clone().requires_grad_()
        mean = forecaster.forecast(context, replace(stimuli, amplitude_ma=amplitude)).mean
        _require(mean.requires_grad, "the forecast is differentiable in the stimulus")
        (slope,) = torch.autograd.grad(mean.square().sum(), amplitude)
        _require(bool(torch.isfinite(slope).all() and (slope != 0).any()), "its gradient is finite and not all zero")


def _check_common_noise(forecaster: Forecaster, context: Context, stimuli: Stimulus, forecast: Forecast) -> None:
    """Rows of one question draw one noise; so does a row alone as in any batch."""
    clause = "the same generator draws the same noise for every row, so stimuli are compared on common random numbers"
    twice = torch.tensor([1, 1])
    same = forecaster.forecast(context[twice], stimuli[twice]).rsample(4, generator(1, "check"))
    _require(_close(same[:, 0], same[:, 1]), clause)
    _require(_close(same[:, 0], forecast.rsample(4, generator(1, "check"))[:, 1]), clause)


def _check_forecast(forecast: Forecast, stimuli: Stimulus) -> None:
    shape = forecast.mean.shape
    _require(shape[:-2] == stimuli.batch_shape, "the mean has the batch of the stimuli")
    _require(forecast.template.batch_shape == stimuli.batch_shape, "the template has the batch of the stimuli")
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
    many = forecast.rsample(_DRAWS, generator(3, "check"))
    share = float(((many >= low) & (many <= high)).double().mean())
    # 0.8 of independent draws; what moves a whole window together spreads 64 of them by 0.05
    _require(0.6 < share < 0.97, f"samples lie between the quantiles that say so (0.8 expected, {share:.2f} found)")
    density = forecast.log_prob(forecast.mean)
    _require(density.shape == stimuli.batch_shape, "log_prob has one number per row")
    _require(bool(torch.isfinite(density).all()), "log_prob is finite at the mean")
    far = forecast.mean + 100 * (high - low).amax()
    _require(bool((forecast.log_prob(far) < density).all()), "log_prob falls away from the mean")


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
    with _own_randomness():
        policy.propose(history, generator(0, "check"))
    for seed in range(seeds):
        stimulus = policy.propose(history, generator(seed, "check"))
        again = policy.propose(history, generator(seed, "check"))
        _require(stimulus.batch_shape == torch.Size(()), "a proposal has batch shape ()")
        _require(_equal_stimuli(stimulus, again), "same history and seed, same proposal")
        _require(bool(envelope.allowed(stimulus, history, now_s)), "the envelope allows every proposal")
        _check_inside(space, stimulus)
    if len(history):
        with _own_randomness():
            kept = policy.recommend(history, generator(0, "check"))
        _require(kept.batch_shape == torch.Size(()), "a recommendation has batch shape ()")
        _require(
            _equal_stimuli(kept, policy.recommend(history, generator(0, "check"))), "same history, same recommendation"
        )
        _check_inside(space, kept, "a recommendation")


def _check_inside(space: StimulationSpace, stimulus: Stimulus, what: str = "a proposal") -> None:
    if bool(stimulus.silent) and stimulus.sensory is None:
        return  # no stimulation is always a choice, and lies in no space
    try:
        unit = space.locate(stimulus)
    except ValueError as error:
        raise ContractError(f"broken clause: {what} lies inside the space: {error}") from error
    _require(bool(((unit >= 0) & (unit <= 1)).all()), f"{what} lies inside the space")
    _require(torch.allclose(space.snap(unit), unit, atol=1e-9), f"{what} takes allowed values only")


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
    alone = torch.cat([objective(response[i : i + 1], stimulus[i : i + 1]) for i in range(rows)])
    _require(_close(alone, score), "rows of a batch do not see each other")
    drawn = map_tensors(response, lambda tensor: torch.stack([tensor, tensor]))
    many = objective(drawn, stimulus)
    _require(_broadcast(many, (2, rows)), "a response may carry leading axes that a stimulus lacks")
    _require(_close(many.expand(2, rows), score.expand(2, rows)), "leading axes of a response do not change its score")


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


def _equal_responses(one: Response, other: Response) -> bool:
    same = {*one.outcomes} == {*other.outcomes} and torch.equal(one.signal_uv, other.signal_uv)
    return same and all(torch.equal(one.outcomes[name], other.outcomes[name]) for name in one.outcomes)


def _close_responses(one: Response, other: Response) -> bool:
    same = {*one.outcomes} == {*other.outcomes} and _close(one.signal_uv, other.signal_uv)
    return same and all(_close(one.outcomes[name], other.outcomes[name]) for name in one.outcomes)


def _finite_response(response: Response) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in (response.signal_uv, *response.outcomes.values()))


def _refuses_shape(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except ShapeError:
        return True
    return False


def _renamed(montage: Montage) -> Montage:
    """The same places under other names."""
    names = {contact.name: f"other{i}" for i, contact in enumerate(montage.contacts)}
    contacts = tuple(replace(contact, name=names[contact.name]) for contact in montage.contacts)
    channels = tuple(
        replace(c, name=f"other {c.name}", plus=names[c.plus], minus=names.get(c.minus or "")) for c in montage.channels
    )
    return Montage(contacts, channels, montage.frame)


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Refuse a draw from the generators that a process shares: with them a resumed run is another run.

    Python's own `random` is left out, because type checkers that run with the code draw from it; an
    implementation that does is found by asking twice.
    """
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    yield
    torch_after, numpy_after = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    kept = torch.equal(torch_before, torch_after) and str(numpy_before) == str(numpy_after)
    _require(kept, "randomness comes from the generator argument; no global generator is touched")


def _equal_states(one: State, other: State) -> bool:
    return {*one} == {*other} and all(torch.equal(one[name], other[name]) for name in one)


def _equal_stimuli(one: Stimulus, other: Stimulus) -> bool:
    fields = ("amplitude_ma", "frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")
    same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in fields)
    if one.sensory is None or other.sensory is None:
        return same and one.sensory is other.sensory
    felt = ("intensity", "frequency_hz", "duration_s", "onset_s", "features")
    return same and all(torch.equal(getattr(one.sensory, name), getattr(other.sensory, name)) for name in felt)
