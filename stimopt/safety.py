"""The safety envelope: what may be delivered, how far a stimulus is from each limit, which limit binds.

An `Envelope` is a set of limits, each with value, unit and source, for one protocol or device; profiles lie
in `safety_profiles`. It stands at every door through which a stimulus could reach a device. It refuses
(`require`) and never changes what it is given; `project` is for policies, which may ask for the nearest
allowed stimulus, and the door checks again.

What is unknown fails closed, with two exceptions that are reported as NOT EVALUATED: a limit that nobody has
established, and a contact of unknown area against a limit that needs the area (currents and charges still
bind). A contact whose kind the profile does not cover is refused; a time that is unknown or runs backwards
counts as no time at all.

Silence is always allowed, whatever the past: stopping must never be refused. So a ramp bounds rises only, and
a spent dose or a short interval refuses everything except silence. Sensory stimuli carry no current and are
silence here.

Margin   [*batch, limit]   1 idle, 0 at the limit, negative outside, NaN not evaluated
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import EnvelopeError, ShapeError
from .montage import ContactKind
from .safety_limits import LIMITS, ROUNDING, Limit, Verdict, Word, shown
from .safety_projection import lowered
from .safety_readings import Account, Asked, Past, reading, record_of
from .safety_refusal import refusal
from .stimulus import Stimulus
from .tensors import carries_gradient, map_tensors, where_rows

__all__ = ["Envelope", "Limit", "Margins", "Past", "Verdict"]

_CONTACT_RULES = ("forbidden_contacts", "contact_kinds")
_MAY_BE_UNKNOWN = ("charge_density_uc_cm2", "shannon_k")  # they need the area, which a montage may lack


@dataclass(frozen=True)
class Margins:
    """How far each stimulus of a batch is from each limit. Differentiable in the stimulus.

    Attributes:
        names: Of the limits, `forbidden_contacts` and `contact_kinds` first.
        values: 1 idle, 0 at the limit, negative outside, NaN not evaluated.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "*batch limit"]

    @property
    def worst(self) -> Float[Tensor, "*batch"]:
        """The smallest margin among the limits that are evaluated."""
        return self.values.nan_to_num(nan=1.0).amin(-1)

    @property
    def binding(self) -> tuple[str, ...]:
        """Name of the limit with the smallest margin, one a stimulus, in the flattened order of the batch."""
        places = self.values.nan_to_num(nan=1.0).argmin(-1).reshape(-1)
        return tuple(self.names[int(i)] for i in places)


@dataclass(frozen=True)
class Envelope:
    """Limits of one protocol or device.

    Attributes:
        name: Such as "dbs-chronic".
        description: What it is for.
        limits: Each name at most once; a limit that is not there does not exist for this protocol.
        kinds: Kinds of contact that the limits were made for; current at another kind is refused.
        forbidden: Contacts that may carry no current.

    Raises:
        EnvelopeError: If a limit is given twice.
        MontageError: From every method, if a forbidden contact is not in the stimulus's montage.
    """

    name: str
    description: str
    limits: tuple[Limit, ...]
    kinds: tuple[ContactKind, ...]
    forbidden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [limit.name for limit in self.limits]
        if len(set(names)) != len(names):
            raise EnvelopeError(f"envelope {self.name!r} gives a limit twice: {', '.join(names)}; give each once.")

    def margins(self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None) -> Margins:
        """Distance of each stimulus to each limit.

        Args:
            stimulus: A batch of candidates, each judged alone.
            past: What was delivered before; None for nothing. A `Ledger` has its own clock and one account a row.
            time_s: Start of the window to be judged, on the clock of the past. None with a past means the
                time of its last trial: no time has passed.

        Raises:
            ShapeError: If the past was delivered on other contacts.
        """
        names = (*_CONTACT_RULES, *(limit.name for limit in self.limits))
        return Margins(names, self._margins(stimulus, record_of(past, time_s, stimulus)).to(stimulus.amplitude_ma))

    def allowed(
        self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None
    ) -> Bool[Tensor, "*batch"]:
        """Which stimuli are inside every limit that can be evaluated. A value at the limit is inside.

        Raises:
            ShapeError: If the past was delivered on other contacts.
        """
        with torch.no_grad():
            return ~(self._margins(stimulus, record_of(past, time_s, stimulus)) < 0).any(-1)

    def require(self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None) -> None:
        """Refuse a batch of which any stimulus is not allowed.

        Raises:
            EnvelopeError: Naming contact, value and limit that bind, and the largest setting that is allowed
                (rounded down); its `limit` is the name of that limit.
            ShapeError: If the past was delivered on other contacts.
        """
        inside = self.allowed(stimulus, past, time_s).reshape(-1)
        if bool(inside.all()):
            return
        first = int((~inside).nonzero()[0])
        one = map_tensors(stimulus.reshape(-1)[first], Tensor.detach)
        rows = self.report(one, past, time_s)
        worst = min((row for row in rows if row.margin < 0), key=lambda row: row.margin)
        raise EnvelopeError(
            refusal(self.name, worst, one, lambda other: self.allowed(other, past, time_s), self.kinds), worst.limit
        )

    def project(self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None) -> Stimulus:
        """The nearest allowed stimulus; one that is allowed comes back as it is. Differentiable almost everywhere.

        Width and frequency move to the nearest bound, pulses are dropped from the end, and last the currents of all
        contacts shrink by one factor, so that a balanced pair stays balanced. A forbidden contact loses its
        current, and so much of its partners' that nothing more returns through the case. Where nothing but
        silence is allowed, the stimulus with no current. For policies: a door refuses instead.

        Args:
            stimulus: A batch of stimuli, each projected alone.
            past: What was delivered before.
            time_s: Start of the window to be judged.

        Raises:
            ShapeError: If the past was delivered on other contacts.
        """
        inside = self.allowed(stimulus, past, time_s)
        if bool(inside.all()):
            return stimulus
        record = record_of(past, time_s, stimulus)
        bounds = {limit.name: limit for limit in self.limits if limit.evaluated}
        rules = zip(*(self._banned(stimulus, rule) for rule in _CONTACT_RULES), strict=True)
        banned = torch.tensor([any(rule) for rule in rules], dtype=torch.bool, device=stimulus.pulses.device)
        moved = _chosen(inside, stimulus, lowered(stimulus, bounds, banned, record))
        silent = replace(stimulus, amplitude_ma=stimulus.amplitude_ma * 0.0)
        return _chosen(self.allowed(moved, past, time_s), moved, silent)

    def report(
        self, stimulus: Stimulus, past: Past | Account | None = None, time_s: float | None = None
    ) -> list[Verdict]:
        """Every limit against one stimulus, batch shape ().

        Raises:
            ShapeError: If it is a batch, or the past was delivered on other contacts.
        """
        if stimulus.batch_shape != ():
            raise ShapeError(f"a report is about one stimulus, got a batch of {list(stimulus.batch_shape)}; pick one.")
        with torch.no_grad():
            exact = map_tensors(stimulus.to(stimulus.amplitude_ma.double()), Tensor.detach)
            record = record_of(past, time_s, stimulus)
            margins = self._margins(exact, record).tolist()
            rules = [
                self._rule_verdict(exact, name, margin) for name, margin in zip(_CONTACT_RULES, margins, strict=False)
            ]
            limits = zip(self.limits, margins[len(rules) :], strict=True)
            return rules + [self._verdict(limit, exact, record, margin) for limit, margin in limits]

    def with_limits(self, **values: float) -> "Envelope":
        """This envelope with limits tightened, by name: `with_limits(ramp_ma=1.0, phase_charge_uc=2.0)`.

        A limit that was not evaluated, or not there, may get any value.

        Raises:
            EnvelopeError: If a limit is unknown, impossible, or looser than it was (see `loosened`).
        """
        for name, value in values.items():
            old = self._limit(name)
            if old and old.evaluated and (value < old.value if old.least else value > old.value):
                raise EnvelopeError(
                    f"limit {name} of {self.name!r} is {old.value:g} {old.unit} ({old.source}); {value:g} would "
                    "loosen it. Give a tighter value, or call loosened() with the reason.", name,
                )  # fmt: skip
        return self._changed(values, "set by the user")

    def loosened(self, reason: str, **values: float) -> "Envelope":
        """This envelope with limits changed in any direction; `reason` is kept in their source, and in the name.

        Raises:
            EnvelopeError: If there is no reason, or a limit is unknown or impossible.
        """
        if not reason.strip():
            raise EnvelopeError("a limit is loosened only with a reason; say who decided it and why.")
        return replace(self._changed(values, f"loosened: {reason}"), name=f"{self.name} (loosened)")

    def forbidding(self, *contacts: str) -> "Envelope":
        """This envelope with more contacts that may carry no current."""
        return replace(self, forbidden=tuple(dict.fromkeys((*self.forbidden, *contacts))))

    def _limit(self, name: str) -> Limit | None:
        return next((limit for limit in self.limits if limit.name == name), None)

    def _changed(self, values: dict[str, float], why: str) -> "Envelope":
        limits = {limit.name: limit for limit in self.limits}
        for name, value in values.items():
            if name not in LIMITS:
                raise EnvelopeError(f"limit {name!r} is not known; there are {', '.join(LIMITS)}.", name)
            old = limits.get(name)
            was = f" (was {old.value:g}: {old.source})" if old and old.evaluated else ""
            limits[name] = Limit(name, float(value), LIMITS[name][0], why + was, old.caution if old else None)
        return replace(self, limits=tuple(limits.values()))

    def _banned(self, stimulus: Stimulus, rule: str) -> list[bool]:
        contacts = stimulus.montage.contacts
        if rule == "forbidden_contacts":
            places = {stimulus.montage.contact_index(name) for name in self.forbidden}
            return [i in places for i in range(len(contacts))]
        return [contact.kind not in self.kinds for contact in contacts]

    def _outlawed_ma(self, stimulus: Stimulus, rule: str) -> Tensor:
        banned = self._banned(stimulus, rule)
        if not any(banned):
            return torch.zeros_like(stimulus.pulses)
        return (stimulus.amplitude_ma.abs() * stimulus.amplitude_ma.new_tensor(banned)).sum(-1)

    def _margins(self, stimulus: Stimulus, record: Account) -> Float[Tensor, "*batch limit"]:
        """In double precision, so that a policy in single precision and the door judge alike."""
        exact = stimulus.to(stimulus.amplitude_ma.double())
        columns = [_switched(self._outlawed_ma(exact, name)) for name in _CONTACT_RULES]
        evaluated = [True] * len(columns) + [limit.evaluated for limit in self.limits]
        asked = self._asked(exact, record)
        columns += [self._margin(limit, asked) for limit in self.limits]
        values = torch.stack(columns)  # [limit, *batch]: row after row, which for many stimuli is a good deal faster
        known = torch.tensor(evaluated, device=values.device).reshape(-1, *(1,) * exact.pulses.ndim)
        values = values.masked_fill(exact.silent & known, 1.0)
        edge = values.abs() < ROUNDING
        if carries_gradient(values):
            return torch.where(edge, values - values.detach(), values).movedim(0, -1)
        return values.masked_fill(edge, 0.0).movedim(0, -1)

    def _margin(self, limit: Limit, asked: Asked) -> Tensor:
        pulses = asked.stimulus.pulses
        if not limit.evaluated:
            return torch.full_like(pulses, torch.nan)
        value = reading(limit, asked)
        by_contact = value.ndim > pulses.ndim
        if by_contact and not value.shape[-1]:
            return torch.ones_like(pulses)
        if limit.name in _MAY_BE_UNKNOWN:  # a known contact may fail beside an unknown one
            known = limit.margin(value.nan_to_num(nan=0.0).amax(-1))
            return torch.where(value.isnan().any(-1) & (known >= 0), torch.nan, known)
        worst = value.amax(-1) if by_contact else value
        return limit.margin(worst).nan_to_num(nan=-1.0, neginf=-torch.inf)

    def _asked(self, stimulus: Stimulus, record: Account) -> Asked:
        window = self._limit("window_s")
        return Asked(stimulus, record, window.value if window and window.evaluated else None)

    def _verdict(self, limit: Limit, stimulus: Stimulus, record: Account, margin: float) -> Verdict:
        asked, contact = reading(limit, self._asked(stimulus, record)), ""
        if asked.ndim and asked.shape[-1]:
            place = int(asked.nan_to_num(nan=-1.0 if margin < 0 else torch.inf).argmax())
            contact = stimulus.montage.contacts[place].name if bool(asked[place] != 0) else ""
            asked = asked[place]
        value = shown(limit, float(asked)) if asked.numel() else 0.0
        value = value if math.isfinite(value) else math.nan
        word: Word = "PASS" if margin == margin else "NOT EVALUATED"
        if limit.cautioned(value) and not bool(stimulus.silent):
            word = "CAUTION"
        word = "FAIL" if margin < 0 else word
        reason = limit.reason or ("the contact's area is unknown" if margin != margin else "")
        source = f"{limit.source}; {reason}" if reason else limit.source
        label = f"{limit.label}, contact {contact}" if contact else limit.label
        return Verdict(limit.name, label, value, limit.value, limit.unit, margin, word, contact, source)

    def _rule_verdict(self, stimulus: Stimulus, rule: str, margin: float) -> Verdict:
        currents = stimulus.amplitude_ma.abs() * stimulus.amplitude_ma.new_tensor(self._banned(stimulus, rule))
        contact = stimulus.montage.contacts[int(currents.argmax())].name if margin < 0 else ""
        label = (
            "current at forbidden contacts" if rule == "forbidden_contacts" else "current at contacts of another kind"
        )
        label = f"{label}, contact {contact}" if contact else label
        source = (
            f"profile covers contacts of kind {', '.join(self.kinds)}"
            if rule == "contact_kinds"
            else "forbidden by the user"
        )
        word: Word = "FAIL" if margin < 0 else "PASS"
        return Verdict(rule, label, float(currents.sum()), 0.0, "mA", margin, word, contact, source)


def _switched(current_ma: Tensor) -> Tensor:
    """Margin of a limit of zero: 1 without current, else minus the current in mA."""
    return torch.where(current_ma > 0, -current_ma - ROUNDING, 1.0)


def _chosen(keep: Tensor, kept: Stimulus, other: Stimulus) -> Stimulus:
    """Row by row, `kept` where `keep` holds and `other` elsewhere; the electrical numbers only."""
    names = ("amplitude_ma", "frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")
    chosen: dict[str, Any] = {name: where_rows(keep, getattr(kept, name), getattr(other, name)) for name in names}
    return replace(kept, **chosen)
