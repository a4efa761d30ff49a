"""How much of each limit a stimulus uses, given what was delivered before.

A reading is one number a stimulus, or one a contact, where the worst contact counts. Readings are
differentiable in the stimulus; what the past left behind enters as constants.

Limits that the past decides: `ramp_ma`, the doses, `interval_s`, `train_share`.
Limits on trains only, which a single pulse cannot break: the frequencies and `duty_cycle`.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import ShapeError
from .safety_limits import Limit
from .stimulus import Stimulus
from .waveform import net_charge_uc, train_s

DOSE_WINDOW_S = {"dose_minute_uc": 60.0, "dose_hour_uc": 3600.0}
_INSTANT_S = 1e-9  # stands for no time at all, where a quotient needs one


@runtime_checkable
class Past(Protocol):
    """What was delivered before; a `History` fits.

    Attributes:
        stimuli: Delivered stimuli, batch shape `[trial]`.
        times_s: Start of each trial's window on the session's clock.
        in_flight: A stimulus that may have been delivered, with its time. It counts as delivered.
    """

    @property
    def stimuli(self) -> Stimulus: ...  # noqa: D102

    @property
    def times_s(self) -> Tensor: ...  # noqa: D102

    @property
    def in_flight(self) -> tuple[Stimulus, float] | None: ...  # noqa: D102


@runtime_checkable
class Account(Protocol):
    """What a judgement needs to know of the past: a `Record` of whole trials, or a running `Ledger`.

    Attributes:
        now_s: Start of the window that is judged, one for all or one a row.
        last_ma: Current of the latest train at each contact, `[*batch, contact]`.
    """

    @property
    def now_s(self) -> Tensor | float: ...  # noqa: D102

    @property
    def last_ma(self) -> Tensor: ...  # noqa: D102

    def dose_within(self, window_s: float) -> Tensor:
        """Dose of all trains that reach into the last `window_s` seconds, `[*batch, contact]`."""

    def latest(self) -> tuple[Tensor, Tensor] | None:
        """Start and length of the train that began last and of the one that ends last, `[*batch, 2]`; None for none."""


@dataclass(frozen=True)
class Record:
    """What the past left behind; silent trials leave nothing.

    Attributes:
        now_s: Start of the window that is judged.
        start_s: Start of each train.
        train_s: Length of each train.
        dose_uc: Charge that each train put through each contact, all first phases.
        last_ma: Current of the latest train at each contact.
    """

    now_s: float
    start_s: Float[Tensor, " trial"]
    train_s: Float[Tensor, " trial"]
    dose_uc: Float[Tensor, "trial contact"]
    last_ma: Float[Tensor, " contact"]

    def dose_within(self, window_s: float) -> Float[Tensor, " contact"]:
        """Dose of all trains that reach into the last `window_s` seconds, each counted whole.

        A time that is not a number counts as now.
        """
        over = self.start_s + self.train_s < self.now_s - window_s
        return torch.where(over.unsqueeze(-1), 0.0, self.dose_uc).sum(0)

    def latest(self) -> tuple[Tensor, Tensor] | None:
        """See Account."""
        if not len(self.start_s):
            return None
        last = torch.stack([self.start_s.argmax(), (self.start_s + self.train_s).argmax()])
        return self.start_s[last], self.train_s[last]


@torch.no_grad()
def record_of(past: "Past | Account | None", time_s: float | None, like: Stimulus) -> Account:
    """What the past left behind at `time_s`, in double precision on the device of `like`; an account as it is.

    Raises:
        ShapeError: If the past was delivered on other contacts.
    """
    if isinstance(past, Account):
        return past
    names = [contact.name for contact in like.montage.contacts]
    nothing = like.amplitude_ma.new_zeros(0).double()
    starts, trains, doses, currents = (
        [nothing],
        [nothing],
        [nothing.new_zeros(0, len(names))],
        [nothing.new_zeros(0, len(names))],
    )
    delivered = [] if past is None else [(past.stimuli, past.times_s)]
    if past is not None and past.in_flight is not None:
        stimulus, at_s = past.in_flight
        delivered.append((stimulus.reshape(1), past.times_s.new_tensor([at_s])))
    for stimuli, times_s in delivered:
        if [contact.name for contact in stimuli.montage.contacts] != names:
            raise ShapeError(
                "the past was delivered on other contacts than this stimulus's montage has; use one montage."
            )
        own = stimuli.to(nothing)[~stimuli.silent]
        starts.append(times_s.to(nothing)[~stimuli.silent] + own.onset_s)
        trains.append(train_s(own))
        doses.append(own.phase_charge_uc.abs() * own.pulses.unsqueeze(-1))
        currents.append(own.amplitude_ma)
    start_s, current = torch.cat(starts), torch.cat(currents)
    last_ma = current[int(start_s.argmax())] if len(start_s) else nothing.new_zeros(len(names))
    latest_s = (
        float(torch.cat([t for _, t in delivered] or [nothing]).max()) if any(len(t) for _, t in delivered) else 0.0
    )
    return Record(latest_s if time_s is None else time_s, start_s, torch.cat(trains), torch.cat(doses), last_ma)


class Asked:
    """A stimulus that is judged, with what several limits read of it.

    Args:
        stimulus: In double precision.
        record: The past.
        window_s: Length of the window, where a limit says so.
    """

    def __init__(self, stimulus: Stimulus, record: Account, window_s: float | None) -> None:
        self.stimulus, self.record, self.window_s = stimulus, record, window_s
        self.current_ma = stimulus.amplitude_ma.abs()
        self.charge_uc = stimulus.phase_charge_uc.abs()


def reading(limit: Limit, asked: Asked) -> Tensor:
    """What a stimulus asks of a limit: `[*batch]`, or `[*batch, contact]` for limits on contacts.

    A contact without current asks nothing; one of unknown area asks NaN of a limit that needs the area.
    """
    name, stimulus = limit.name, asked.stimulus
    if name in ("contact_current_ma", "total_current_ma", "ramp_ma"):
        return _current_reading(name, asked)
    if name in ("phase_charge_uc", "charge_density_uc_cm2", "shannon_k", *DOSE_WINDOW_S):
        return _charge_reading(name, asked)
    if name in ("interval_s", "train_share"):
        return _timing_reading(name, stimulus, asked.record)
    if name == "net_charge_uc":
        return net_charge_uc(stimulus, asked.window_s).abs()
    train = stimulus.pulses > 1
    width, frequency = stimulus.pulse_width_us, stimulus.frequency_hz
    readings = {
        "pulse_width_min_us": lambda: width,
        "pulse_width_max_us": lambda: width,
        "frequency_min_hz": lambda: torch.where(train, frequency, math.inf),
        "frequency_max_hz": lambda: torch.where(train, frequency, 0.0),
        "pulses": lambda: stimulus.pulses,
        "train_s": lambda: train_s(stimulus),
        "window_s": lambda: stimulus.onset_s + train_s(stimulus),
        "duty_cycle": lambda: torch.where(train, 2e-6 * width * frequency, 0.0),
    }
    return readings[name]().expand(stimulus.batch_shape)


def _current_reading(name: str, asked: Asked) -> Tensor:
    signed = asked.stimulus.amplitude_ma
    if name == "contact_current_ma":
        return asked.current_ma
    if name == "total_current_ma":  # the case carries what the contacts leave, so the larger polarity counts it
        return torch.maximum(signed.clamp_min(0.0).sum(-1), (-signed).clamp_min(0.0).sum(-1))
    kept = (asked.record.last_ma * signed.sign()).clamp_min(0.0)  # the last current, where it had this polarity
    return (asked.current_ma - kept).clamp_min(0.0)


def _charge_reading(name: str, asked: Asked) -> Tensor:
    charge, stimulus = asked.charge_uc, asked.stimulus
    if name == "phase_charge_uc":
        return charge
    driven = charge > 0
    if name in DOSE_WINDOW_S:
        dose = asked.record.dose_within(DOSE_WINDOW_S[name]) + charge * stimulus.pulses.unsqueeze(-1)
        return torch.where(driven, dose, 0.0)
    area = stimulus.montage.area_cm2.to(charge)
    share = charge / (area if name == "charge_density_uc_cm2" else area.sqrt())
    return torch.where(driven, share, 0.0)


def _timing_reading(name: str, stimulus: Stimulus, record: Account) -> Tensor:
    latest = record.latest()
    if latest is None:
        return torch.full_like(stimulus.onset_s, math.inf if name == "interval_s" else 0.0)
    began_s, lasted_s = latest
    elapsed = (record.now_s + stimulus.onset_s).unsqueeze(-1) - began_s  # [*batch, 2]
    elapsed = elapsed.nan_to_num(nan=0.0, posinf=math.inf)
    elapsed = elapsed.clamp_min(0.0)  # an unknown time and a clock set back count as no time
    if name == "interval_s":
        return elapsed.amin(-1)
    return (lasted_s / elapsed.clamp_min(_INSTANT_S)).amax(-1)
