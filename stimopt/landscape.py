"""What is true of a simulated system: expected scores, the optimum, and calibration trials.

Only a twin allows this. Expected scores are means over repeats that share their noise
across stimuli (common random numbers), each from a session's start, so they leave drift
out. The optimum is the best of a dense search, refined around its best points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import EnvelopeError
from .forecaster import Context, Trials
from .history import History, empty_history
from .objective import Objective
from .response import Response
from .safety import Envelope
from .space import StimulationSpace
from .stimulus import Stimulus, no_stimulus
from .system import System
from .tensors import concatenate, generator, map_tensors

SESSIONS = 5  # of calibration in commands: a fifth of the time, and long enough for a drift to show
_CHUNK = 1024  # batch rows simulated at once; larger gains little and costs memory


@dataclass(frozen=True)
class Landscape:
    """Expected scores over allowed points of a space.

    Attributes:
        unit: Points of the cube that were searched.
        score: Expected score at each.
        silence: Expected score without stimulation.
        trial_sd: Standard deviation of single trials, median over points.
        seed: Names the noise that all points shared.
        known: A better expected score found elsewhere, such as by a policy.
    """

    unit: Float[Tensor, "point dimension"]
    score: Float[Tensor, " point"]
    silence: float
    trial_sd: float
    seed: int
    known: float = -math.inf

    @property
    def optimum(self) -> float:
        """The best expected score found."""
        return max(float(self.score.max()), self.known)

    def raised(self, known: float) -> "Landscape":
        """The same landscape, in which somebody found the expected score `known`."""
        return replace(self, known=max(known, self.known))

    @property
    def best(self) -> Float[Tensor, " dimension"]:
        """Where it was found."""
        return self.unit[int(self.score.argmax())]


def repeated_scores(
    system: System, objective: Objective, stimuli: Stimulus, *, repeats: int, seed: int
) -> Float[Tensor, "repeat point"]:
    """Scores of each stimulus (one batch axis, `point`) in `repeats` windows whose noise all stimuli share."""
    rows = max(1, _CHUNK // repeats)
    pieces = []
    start = system.start((repeats,), generator(seed, "truth", "start"))
    for first in range(0, stimuli.batch_shape[0], rows):
        some = stimuli[first : first + rows]
        count = some.batch_shape[0]
        state = {k: v.unsqueeze(1).expand(repeats, count, *v.shape[1:]).flatten(0, 1) for k, v in start.items()}
        many = map_tensors(some, lambda v: v.expand(repeats, *v.shape).flatten(0, 1))
        with torch.no_grad():
            response, _ = system.respond(state, many, generator(seed, "truth", "respond"))
            pieces.append(objective(response, many).reshape(repeats, count))
    return torch.cat(pieces, 1).double()


def dense_search(
    system: System, space: StimulationSpace, envelope: Envelope, objective: Objective,
    *, points: int, repeats: int, seed: int, rounds: int = 2,
) -> Landscape:  # fmt: skip
    """Expected scores over `points` Sobol points, then over as many around the best ones, `rounds` times.

    Points that the envelope forbids are left out.

    Raises:
        EnvelopeError: If it forbids all of them.
    """
    unit = space.snap(torch.quasirandom.SobolEngine(space.dimension, scramble=True, seed=seed).draw(points).double())
    unit = unit[envelope.allowed(space.stimulus(unit))]
    if not len(unit):
        raise EnvelopeError(
            f"the envelope {envelope.name!r} forbids all {points} points of this space; tighten the bounds."
        )
    runs = repeated_scores(system, objective, space.stimulus(unit), repeats=repeats, seed=seed)
    trial_sd, score = float(runs.std(0).median()) if repeats > 1 else math.nan, runs.mean(0)
    for turn in range(rounds):
        near = _around(unit[score.topk(min(8, len(score))).indices], points // 4, 0.12 / 2**turn, seed + turn + 1)
        near = space.snap(near)
        near = near[envelope.allowed(space.stimulus(near))]
        if not len(near):  # a narrow region, and every step left it
            continue
        found = repeated_scores(system, objective, space.stimulus(near), repeats=repeats, seed=seed).mean(0)
        unit, score = torch.cat([unit, near]), torch.cat([score, found])
    silent = no_stimulus(space.template.montage, (1,))
    silence = repeated_scores(system, objective, silent, repeats=repeats, seed=seed).mean()
    return Landscape(unit, score, float(silence), trial_sd, seed)


def _around(centres: Tensor, count: int, spread: float, seed: int) -> Tensor:
    source = generator(seed, "around")
    rows = torch.randint(len(centres), (count,), generator=source)
    steps = torch.randn(count, centres.shape[-1], generator=source, dtype=centres.dtype)
    return (centres[rows] + spread * steps).clamp(0, 1)


def calibrate(
    system: System, space: StimulationSpace, envelope: Envelope,
    *, trials: int, seed: int, interval_s: float = 5.0, silent_share: float = 0.2, sessions: int = 1,
) -> Trials:  # fmt: skip
    """Recorded trials for fitting a model: random allowed stimuli and some silence, one window after another.

    Each trial has a silent window before it, whose signal is its context. Several sessions are recorded side by side,
    which a batched system does in the time of one; all first trials come first, then all second ones.

    Args:
        system: Answers.
        space: Stimuli are drawn uniformly from its cube.
        envelope: Stands at this door too; every draw is checked against the trials before it.
        trials: How many in all; the last round of the sessions may be a part of one.
        seed: Names the streams.
        interval_s: Time between trials of a session, for the envelope's doses.
        silent_share: Share of trials without stimulation, without which the effect of stimulating is extrapolated.
        sessions: From how many starts of the system; the envelope judges each session by its own past.

    Raises:
        EnvelopeError: If no allowed stimulus is found in 1000 draws.
    """
    source, montage = generator(seed, "calibrate"), system.montage
    silence, quiet = no_stimulus(montage), no_stimulus(montage, (sessions,))
    state = system.start((sessions,), generator(seed, "calibrate", "start"))
    histories = [empty_history(space.template)] * sessions
    contexts, delivered, responses = [], [], []
    for number in range(math.ceil(trials / sessions)):
        silent = number % round(1 / silent_share) == 0
        chosen = []
        for place, history in enumerate(histories):
            at_s = number * interval_s
            stimulus = silence if silent else _allowed_draw(space, envelope, history, at_s, source)
            envelope.require(stimulus, history, at_s)
            histories[place] = history.with_trial(stimulus, 0.0, at_s, None)
            chosen.append(_row(stimulus))
        stimuli = concatenate(chosen)
        with torch.no_grad():
            before, state = system.respond(state, quiet, generator(seed, "calibrate", "before", number))
            response, state = system.respond(state, stimuli, generator(seed, "calibrate", "after", number))
        contexts.append(before)
        delivered.append(stimuli)
        responses.append(response)
    joined = concatenate(contexts)
    recorded = Trials(
        Context(montage, joined.signal_uv, joined.rate_hz), concatenate(delivered), concatenate(responses)
    )
    return recorded[:trials]


def _allowed_draw(
    space: StimulationSpace, envelope: Envelope, history: History, time_s: float, source: torch.Generator
) -> Stimulus:
    for _ in range(16):
        stimuli = space.stimulus(torch.rand(64, space.dimension, generator=source, dtype=torch.float64))
        allowed = envelope.allowed(stimuli, history, time_s).nonzero()
        if len(allowed):
            return stimuli[int(allowed[0])]
    raise EnvelopeError(
        f"the envelope {envelope.name!r} allowed none of 1024 random stimuli at {time_s} s; "
        "narrow the space or lengthen the interval between trials."
    )


def _row(stimulus: Stimulus) -> Stimulus:
    return map_tensors(stimulus, lambda tensor: tensor.unsqueeze(0))


def one_window(system: System, stimuli: Sequence[Stimulus], *, seed: int) -> list[Response]:
    """The response to each stimulus (batch shape ()) in the same window: same state, same noise."""
    state = system.start((), generator(seed, "window", "start"))
    with torch.no_grad():
        return [system.respond(state, stimulus, generator(seed, "window"))[0] for stimulus in stimuli]
