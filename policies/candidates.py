"""Points of a space that may be proposed now: drawn evenly, filtered by the envelope.

Every policy asks here, so that none can forget the envelope. A listed axis is drawn evenly over
its values, however they lie on the cube; a continuous one evenly over its length.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.quasirandom import SobolEngine

from stimopt.errors import EnvelopeError, SpaceError, StimulusError
from stimopt.history import History, settings_matrix
from stimopt.safety import Envelope
from stimopt.space import StimulationSpace
from stimopt.stimulus import Stimulus
from stimopt.tensors import require_finite, stream_seed

_PROJECTED = 16  # points projected where none is allowed; enough to find a region, few enough to be quick
_SAME = 1e-9  # relative; exp() of one value and of a batch may differ in the last bit


def spread(space: StimulationSpace, share: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch dimension"]:
    """Cube points from one number in [0, 1) per parameter, so that an even draw is even over listed values too."""
    parts = []
    for parameter, part in zip(space.parameters, share.unbind(-1), strict=True):
        if parameter.discrete:
            grid = parameter.grid_like(share)
            parts.append(grid[(part * len(grid)).long().clamp(0, len(grid) - 1)])
        else:
            parts.append(part.unsqueeze(-1))
    return torch.cat(parts, -1)


def uniform_points(space: StimulationSpace, count: int, generator: torch.Generator) -> Float[Tensor, "point dimension"]:
    """Independent even draws (float64)."""
    return spread(space, torch.rand(count, len(space.parameters), generator=generator, dtype=torch.float64))


def sobol_points(space: StimulationSpace, count: int, seed: int) -> Float[Tensor, "point dimension"]:
    """The first `count` points of the scrambled Sobol sequence named by `seed` (float64)."""
    engine = SobolEngine(len(space.parameters), scramble=True, seed=stream_seed(seed, "sobol"))
    return spread(space, engine.draw(count, dtype=torch.float64))


def now_s(history: History) -> float:
    """When the next window starts: what the session has set, and never before the last trial."""
    last = float(history.times_s[-1]) if len(history) else 0.0
    return max(history.next_time_s, last)


def allowed(
    space: StimulationSpace, envelope: Envelope, points: Float[Tensor, "point dimension"], history: History
) -> Bool[Tensor, " point"]:
    """Which points the envelope allows as the next stimulus. One that no device could deliver is not allowed."""
    found = deliverable(space, points)
    if bool(found.any()):
        found[found.clone()] = envelope.allowed(space.stimulus(points[found]), history, now_s(history))
    return found


def deliverable(space: StimulationSpace, points: Float[Tensor, "point dimension"]) -> Bool[Tensor, " point"]:
    """Which points a device could deliver: pulses that fit into their period, or a lone one however fast it repeats."""
    values, template = _train_values(space, points), space.template
    width_us = values.get("pulse_width_us", template.pulse_width_us)
    gap_us = values.get("interphase_us", template.interphase_us)
    frequency_hz = values.get("frequency_hz", template.frequency_hz)
    duration_s = values.get("duration_s", space.duration_s)
    pulses = values.get("pulses", template.pulses) if duration_s is None else duration_s * frequency_hz - 1e-6
    apart = (2 * width_us + gap_us) * 1e-6 * frequency_hz <= 1.0
    return (apart | (pulses <= 1)).expand(len(points)).clone()


def _train_values(space: StimulationSpace, points: Tensor) -> dict[str, Tensor]:
    """Numbers of the electrical parameters; a feature that is named like one of them is none."""
    values, sensory = space.decode(points), space.template.sensory
    for parameter in space.parameters:
        if parameter.numbered:
            choices = [float(choice) for choice in parameter.choices]
            values[parameter.name] = points.new_tensor(choices)[values[parameter.name]]
    return {name: value for name, value in values.items() if sensory is None or name not in sensory.feature_names}


def allowed_points(
    space: StimulationSpace, envelope: Envelope, points: Float[Tensor, "point dimension"], history: History
) -> Float[Tensor, "some dimension"]:
    """The points that the envelope allows as the next stimulus, in their order; may be none."""
    return points[allowed(space, envelope, points, history)]


def reachable_points(
    space: StimulationSpace, envelope: Envelope, points: Float[Tensor, "point dimension"], history: History
) -> Float[Tensor, "some dimension"]:
    """The allowed points; where there is none, the allowed ones among their projections into the envelope.

    A ramp limit may allow so small a region that no draw hits it; the projection does.

    Raises:
        EnvelopeError: If both are empty.
    """
    found = allowed_points(space, envelope, points, history)
    if len(found) == 0:
        found = allowed_points(space, envelope, projected(space, envelope, points[:_PROJECTED], history), history)
    if len(found) == 0:
        raise nothing_allowed(len(points), history)
    return found


def projected(
    space: StimulationSpace, envelope: Envelope, points: Float[Tensor, "point dimension"], history: History
) -> Float[Tensor, "point dimension"]:
    """The envelope's nearest allowed stimulus to each point, as a snapped point; the point itself where that leaves
    the space. Snapping may leave the envelope again: check what comes back.
    """
    try:
        return space.snap(space.locate(envelope.project(space.stimulus(points), history, now_s(history))))
    except (SpaceError, StimulusError):
        if len(points) == 1:
            return points
        halves = points.split((len(points) + 1) // 2)
        return torch.cat([projected(space, envelope, half, history) for half in halves])


def nothing_allowed(tried: int, history: History) -> EnvelopeError:
    """The refusal of a policy that has nothing left to propose."""
    return EnvelopeError(
        f"the envelope allows none of {tried} points of the space at {now_s(history):g} s, "
        f"after {len(history)} trials; "
        "narrow the space to what is safe, lengthen interval_s, or start nearer to the setting before."
    )


def visits(
    space: StimulationSpace, points: Float[Tensor, "point dimension"], history: History
) -> Float[Tensor, " point"]:
    """How often each point has been delivered so far (float64); what no device could deliver, never."""
    count, possible = points.new_zeros(len(points)), deliverable(space, points)
    if len(history) == 0 or not bool(possible.any()):
        return count
    asked = settings_matrix(space.stimulus(points[possible])).unsqueeze(1)
    given = settings_matrix(history.stimuli).unsqueeze(0)
    same = (asked - given).abs() <= _SAME * (1 + given.abs())
    count[possible] = same.all(-1).sum(1).to(points)
    return count


def located(space: StimulationSpace, history: History) -> tuple[Float[Tensor, "trial dimension"], Tensor]:
    """Cube points of the trials that lie in the space, and which trials those are (indices).

    A trial from elsewhere, such as a control without current, tells nothing about the space and is left out.

    Raises:
        ShapeError: If a score is not finite; `Session.tell` refuses such a score before it gets here.
    """
    require_finite("history.scores", history.scores)
    if len(history) == 0:
        return torch.zeros(0, space.dimension, dtype=torch.float64), torch.arange(0)
    try:
        return space.snap(space.locate(history.stimuli)), torch.arange(len(history))
    except SpaceError:
        rows = [_located_one(space, history.stimuli[index]) for index in range(len(history))]
    kept = [index for index, row in enumerate(rows) if row is not None]
    points = [row for row in rows if row is not None]
    nothing = torch.zeros(0, space.dimension, dtype=torch.float64)
    return torch.stack(points) if points else nothing, torch.tensor(kept, dtype=torch.long)


def _located_one(space: StimulationSpace, stimulus: Stimulus) -> Tensor | None:
    try:
        return space.snap(space.locate(stimulus))
    except SpaceError:
        return None


def neighbours(
    space: StimulationSpace, centres: Float[Tensor, "centre dimension"], count: int, generator: torch.Generator
) -> Float[Tensor, "point dimension"]:
    """Snapped points around centres, near and far: each moves along some axes, and seldom changes a name."""
    chosen = torch.randint(len(centres), (count,), generator=generator)
    reach = 0.2 * torch.rand(count, 1, generator=generator, dtype=torch.float64).square()  # up to a fifth of an axis
    step = reach * torch.randn(count, space.dimension, generator=generator, dtype=torch.float64)
    moved, redrawn = centres[chosen] + step, uniform_points(space, count, generator)
    redraw = torch.rand(count, len(space.parameters), generator=generator) < 0.15
    for index, (parameter, axes) in enumerate(zip(space.parameters, space.slices().values(), strict=True)):
        if parameter.discrete:  # small steps snap back to the same value
            moved[:, axes] = torch.where(redraw[:, index, None], redrawn[:, axes], moved[:, axes])
    return space.snap(moved)
