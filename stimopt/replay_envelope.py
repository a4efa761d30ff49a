"""The door of a replay: only what was recorded, and only as often as it was.

It has the face of a safety envelope, so that policies meet it as they meet one, but it
judges no safety: the recorded trials have been delivered already.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import EnvelopeError
from .recorded import RecordedStimuli
from .safety import Envelope, Margins, Past, Verdict
from .safety_readings import Account
from .stimulus import Stimulus

_LIMITS = (
    ("recorded", "distance to a recorded stimulus", "of the space"),
    ("repetitions", "repetitions used", "of those recorded"),
)


@dataclass(frozen=True)
class ReplayEnvelope(Envelope):
    """Allows recorded stimuli that have repetitions left after the trials of a past. Made by `replay_envelope`.

    The one class below `Envelope`: policies take an envelope, and a replay's rules are about trials, not currents.

    Attributes:
        recorded: What was recorded.
        tolerance: Largest distance to a recorded stimulus, as a share of the space.
        redraw: Whether repetitions never run out.
    """

    recorded: RecordedStimuli = field(kw_only=True)
    tolerance: float = field(kw_only=True)
    redraw: bool = field(default=False, kw_only=True)

    def margins(self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None) -> Margins:
        """Distance to the two limits: 1 is idle, 0 the limit, negative outside.

        "recorded" is the distance to the nearest recorded stimulus against the tolerance; "repetitions" the share
        of its repetitions that is left, and outside where none is. The time plays no part.
        """
        cell, gap = self.recorded.nearest(stimulus)
        near = 1 - gap / self.tolerance if self.tolerance > 0 else 1 - 2 * (gap > 0).double()
        left = self._left(past)[cell]
        values = torch.stack([near, torch.where(left > 0, left, -1.0)], -1)
        return Margins(tuple(name for name, _, _ in _LIMITS), values.to(stimulus.amplitude_ma))

    def allowed(
        self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None
    ) -> Bool[Tensor, "*batch"]:
        """Whether each stimulus is recorded and has a repetition left after `past`."""
        cell, gap = self.recorded.nearest(stimulus)
        return ((gap <= self.tolerance) & (self._left(past)[cell] > 0)).to(stimulus.amplitude_ma.device)

    def require(self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None) -> None:
        """Refuse what is not allowed.

        Raises:
            NotRecordedError: If nobody recorded it.
            EnvelopeError: If its repetitions are used up.
        """
        cell = self.recorded.require(stimulus, self.tolerance).reshape(-1)
        spent = self._left(past)[cell] <= 0
        if bool(spent.any()):
            first = int(cell[int(spent.nonzero()[0])])
            raise EnvelopeError(
                f"all {int(self.recorded.repetitions[first])} repetitions of {self.recorded.describe(first)} are used "
                "up; propose another stimulus, or set used_up to 'redraw' and say so in the report.",
                "repetitions",
            )

    def project(self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None) -> Stimulus:
        """The nearest recorded stimulus that has a repetition left, for each; an allowed one stays as it is.

        Raises:
            EnvelopeError: If none has.
        """
        left = (self._left(past) > 0).nonzero().squeeze(-1)
        if not len(left):
            raise EnvelopeError("every recorded trial is used up; end the replay here.", "repetitions")
        nearest = left[self.recorded.gaps(stimulus)[..., left].argmin(-1)]
        keep = self.allowed(stimulus, past, time_s).cpu()
        settings = torch.where(keep.unsqueeze(-1), self.recorded.asked(stimulus), self.recorded.settings[nearest])
        sensory = stimulus.sensory
        assert sensory is not None  # `asked` has refused it
        columns = [sensory.feature_names.index(knob.name) for knob in self.recorded.table.space.parameters]
        features = sensory.features.clone()
        features[..., columns] = settings.to(features)
        return replace(stimulus, sensory=replace(sensory, features=features))

    def report(
        self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None
    ) -> list[Verdict]:
        """Both limits against one stimulus, batch shape ()."""
        margins = self.margins(stimulus, past, time_s).values.tolist()
        bounds = (self.tolerance, 1.0)
        return [
            Verdict(name, label, bound * (1 - margin), bound, unit, margin, "PASS" if margin >= 0 else "FAIL", "",
                    "the recorded trials; no limit of safety")
            for (name, label, unit), margin, bound in zip(_LIMITS, margins, bounds, strict=True)
        ]  # fmt: skip

    def _left(self, past: Past | Account | None) -> Float[Tensor, " cell"]:
        """Share of each stimulus's repetitions that is left; one in flight counts as used."""
        total = self.recorded.repetitions.double()
        if self.redraw or past is None:
            return torch.ones_like(total)
        if not isinstance(past, Past):
            raise EnvelopeError(
                "a replay counts the repetitions of whole trials, which a ledger has not; give a History."
            )
        delivered = [past.stimuli] + ([past.in_flight[0]] if past.in_flight else [])
        cells = torch.cat([self.recorded.nearest(stimuli)[0].reshape(-1) for stimuli in delivered])
        left: Tensor = 1 - torch.bincount(cells, minlength=len(total)) / total
        return left


def replay_envelope(recorded: RecordedStimuli, tolerance: float, redraw: bool = False) -> ReplayEnvelope:
    """The envelope of what was recorded."""
    return ReplayEnvelope(
        "recorded trials", "answers only what was recorded, each repetition once", (), (),
        recorded=recorded, tolerance=tolerance, redraw=redraw,
    )  # fmt: skip
