"""What a virtual patient gives to be judged on: rest, past trials, and tests whose truth is known.

Tests begin at a pool of states. Each test stimulus is delivered from several of them, and
silence from all, twice, with two draws of the noise ahead (futures) that every stimulus
and silence share. So an effect is a difference within one state and one noise, and what two
futures of the same states have in common is what could be forecast at all.

    rest       [window, channel, 250]              quiet, long before
    past       [trial]                             contexts 1.0 s, responses 0.5 s
    contexts   [state, channel, 250]
    silent_uv  [future, state, channel, 125]
    answer_uv  [future, stimulus, repeat, channel, 125]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .forecaster import Context, Trials
from .protocol_splits import Design
from .response import Response
from .stimulus import Stimulus, no_stimulus
from .system import State, System, sliced
from .tensors import concatenate, generator

FUTURES = 2
CONTEXT_WINDOWS = 2  # of half a second: 1.0 s
_SESSIONS = 5  # of past trials, side by side: a fifth of the time
_REST_WINDOWS = 8
_ROWS = 512  # simulated at once


@dataclass(frozen=True)
class Pool:
    """States that tests begin at: what was seen before, and what follows without a stimulus."""

    contexts: Context
    silent_uv: Float[Tensor, "future state channel time"]


@dataclass(frozen=True)
class Repeats:
    """Stimuli of one split, each from several states of a pool, and the answers of every future."""

    stimulus: Stimulus
    state: Int[Tensor, "stimulus repeat"]
    answer_uv: Float[Tensor, "future stimulus repeat channel time"]


@dataclass(frozen=True)
class Examination:
    """Everything a patient's forecasters are judged on.

    Attributes:
        pool: See `Pool`.
        splits: Tests by split; a split that the montage does not allow is missing.
        template: A response whose montage, rate and times are those of all answers.
    """

    pool: Pool
    splits: Mapping[str, Repeats]
    template: Response


def resting(system: System, seed: int) -> Context:
    """Quiet windows of 1.0 s of a session of its own, `[window]`."""
    state = system.start((_REST_WINDOWS,), generator(seed, "rest", "start"))
    return quiet_context(system, state, seed, "rest")[0]


def past_trials(system: System, design: Design, count: int, seed: int) -> Trials:
    """Trials in time order, from five sessions side by side; fewer past trials are the first of these."""
    stimuli = design.past(count, generator(seed, "past"))
    state = system.start((_SESSIONS,), generator(seed, "past", "start"))
    rounds = []
    for number in range(math.ceil(count / _SESSIONS)):
        context, state = quiet_context(system, state, seed, "past", number)
        rows = (torch.arange(_SESSIONS) + number * _SESSIONS).clamp_max(count - 1)
        with torch.no_grad():
            response, state = system.respond(state, stimuli[rows], generator(seed, "past", "answer", number))
        rounds.append(Trials(context, stimuli[rows], replace(response, outcomes={})))
    return concatenate(rounds)[:count]


def examination(
    system: System, design: Design, *, splits: Sequence[str], stimuli: int, repeats: int, states: int, seed: int
) -> Examination:
    """Simulate the tests of a patient.

    Args:
        system: The patient; the same state, stimulus and seed must answer the same.
        design: Draws the stimuli.
        splits: Names from `SPLITS`.
        stimuli: How many in each split.
        repeats: From how many states each is delivered.
        states: How many states there are, at least `repeats`.
        seed: Names the streams.
    """
    contexts, state = quiet_context(
        system, system.start((states,), generator(seed, "test", "start")), seed, "test", "before"
    )
    rows = torch.arange(states)
    silent = [answers(system, state, no_stimulus(system.montage, (states,)), rows, seed, f) for f in range(FUTURES)]
    made = {}
    for split in splits:
        chosen = design.test(split, stimuli, generator(seed, "test", split))
        if chosen is not None:
            made[split] = _repeats(system, state, chosen, repeats, states, seed, split)
    template = replace(silent[0], signal_uv=silent[0].signal_uv[:0])
    return Examination(Pool(contexts, torch.stack([s.signal_uv for s in silent])), made, template)


def answers(
    system: System, state: State, stimulus: Stimulus, rows: Int[Tensor, " row"], seed: int, future: int
) -> Response:
    """One window for each stimulus, begun at the given rows of `state`, with the noise of one future."""
    parts = []
    for first in range(0, len(rows), _ROWS):
        some = slice(first, first + _ROWS)
        with torch.no_grad():
            source = generator(seed, "test", "future", future)
            response, _ = system.respond(sliced(state, rows[some]), stimulus[some], source)
        parts.append(replace(response, outcomes={}))
    return concatenate(parts)


def quiet_context(system: System, state: State, seed: int, *path: str | int) -> tuple[Context, State]:
    """Two quiet windows joined, and the state after them."""
    parts = []
    with torch.no_grad():
        for number in range(CONTEXT_WINDOWS):
            batch = next(iter(state.values())).shape[0]
            source = generator(seed, *path, "quiet", number)
            response, state = system.respond(state, no_stimulus(system.montage, (batch,)), source)
            parts.append(response)
    return Context(system.montage, torch.cat([part.signal_uv for part in parts], -1), parts[0].rate_hz), state


def _repeats(
    system: System, state: State, chosen: Stimulus, repeats: int, states: int, seed: int, split: str
) -> Repeats:
    source = generator(seed, "test", split, "states")
    count = chosen.batch_shape[0]
    index = torch.stack([torch.randperm(states, generator=source)[:repeats] for _ in range(count)])
    many = repeated(chosen, repeats)
    futures = [answers(system, state, many, index.flatten(), seed, f).signal_uv for f in range(FUTURES)]
    answer_uv = torch.stack(futures).unflatten(1, (count, repeats))
    return Repeats(chosen, index, answer_uv)


def repeated(stimulus: Stimulus, repeats: int) -> Stimulus:
    """Each stimulus `repeats` times in a row, along the one batch axis."""
    return stimulus[torch.arange(stimulus.batch_shape[0]).repeat_interleave(repeats)]
