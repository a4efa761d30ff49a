"""The sentence of a refusal: what came, what is allowed, and settings that are allowed, rounded down.

Every setting that is offered has been checked as printed, against the whole envelope and not only the limit that
binds: who types it in will not be refused again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .safety_limits import Verdict
from .stimulus import Stimulus

_Check = Callable[[Stimulus], Tensor]
_SHARES = 201  # shares of the present setting tried at once; twice, so to 1 part in 40 000


def refusal(envelope: str, finding: Verdict, stimulus: Stimulus, check: _Check, kinds: Sequence[str]) -> str:
    """Why one stimulus is refused, and the way out.

    Args:
        envelope: Name of the envelope.
        finding: The limit that binds.
        stimulus: What was asked, batch shape ().
        check: Tells of a batch which stimuli are allowed.
        kinds: Kinds of contact that the envelope covers.
    """
    if finding.limit == "forbidden_contacts":
        return f"contact {finding.contact!r} is forbidden in {envelope!r}; choose contacts that leave it out."
    if finding.limit == "contact_kinds":
        kind = stimulus.montage.contacts[stimulus.montage.contact_index(finding.contact)].kind
        return (
            f"contact {finding.contact!r} is of kind {kind!r} and {envelope!r} covers {', '.join(kinds)}; its limits "
            "say nothing about such a contact. Take a profile that covers it, or mend the montage."
        )
    with torch.no_grad():
        return f"{_what_came(envelope, finding, stimulus)} {_way_out(finding, stimulus, check)}"


def _what_came(envelope: str, finding: Verdict, stimulus: Stimulus) -> str:
    unit = f" {finding.unit}" if finding.unit else ""
    where = f"contact {finding.contact!r}: " if finding.contact else ""
    label = finding.label.partition(", contact")[0]
    value = _above(finding.value, finding.allowed)
    return (
        f"{where}{label} would be {value}{unit} ({_setting(finding.contact, stimulus)}); "
        f"{envelope!r} allows {finding.allowed:g}{unit} ({finding.source})."
    )


def _above(value: float, limit: float) -> str:
    """A value with as many digits as tell it from the limit."""
    for digits in range(3, 12):
        if f"{value:.{digits}g}" != f"{limit:.{digits}g}":
            return f"{value:.{digits}g}"
    return repr(value)


def _setting(contact: str, stimulus: Stimulus) -> str:
    pulses = float(stimulus.pulses)
    train = f"{pulses:g} pulse{'' if pulses == 1 else 's'} at {float(stimulus.frequency_hz):.4g} Hz"
    if not contact:
        return f"{float(stimulus.amplitude_ma.abs().max()):.4g} mA for {float(stimulus.pulse_width_us):.4g} us, {train}"
    place = stimulus.montage.contact_index(contact)
    area = stimulus.montage.contacts[place].area_cm2
    over = f" over {area:.3g} cm2" if area == area else ""
    current, width = float(stimulus.amplitude_ma[place].abs()), float(stimulus.pulse_width_us)
    return f"{current:.4g} mA for {width:.4g} us{over}, {train}"


def _way_out(finding: Verdict, stimulus: Stimulus, check: _Check) -> str:
    if finding.limit in ("interval_s", "train_share"):
        return "Wait, and ask again later; no stimulus but silence is allowed now."
    place = (
        stimulus.montage.contact_index(finding.contact)
        if finding.contact
        else int(stimulus.amplitude_ma.abs().argmax())
    )
    offers = []
    for name in ("amplitude_ma", "pulse_width_us", "frequency_hz", "pulses"):
        text = _largest_allowed(name, stimulus, place, check)
        if text:
            offers.append(f"{name} to {text}")
    if offers:
        return f"Lower {' or '.join(offers)}."
    if finding.limit in ("pulse_width_min_us", "frequency_min_hz"):
        name = "pulse_width_us" if finding.limit == "pulse_width_min_us" else "frequency_hz"
        fits = name == "frequency_hz" or _pulse_fits(stimulus, finding.allowed)
        if fits and _passes(name, f"{finding.allowed:g}", stimulus, place, check):
            return f"Raise {name} to {finding.allowed:g}."
    return "No one setting mends it: project() gives the nearest stimulus that is allowed."


def _pulse_fits(stimulus: Stimulus, width_us: float) -> bool:
    """Whether a wider pulse still ends before the next begins."""
    pulse_s = (2 * width_us + float(stimulus.interphase_us)) * 1e-6
    return float(stimulus.pulses) <= 1 or pulse_s * float(stimulus.frequency_hz) <= 1


def _largest_allowed(name: str, stimulus: Stimulus, place: int, check: _Check) -> str:
    """The largest smaller value of one setting that is allowed, as text that may be typed in; empty if none."""
    now = float(stimulus.amplitude_ma[place].abs() if name == "amplitude_ma" else getattr(stimulus, name))
    low, high = 0.0, now
    for _ in range(2):
        values = torch.linspace(low, high, _SHARES, dtype=torch.float64)[1:]
        values = values.floor().clamp_min(1.0) if name == "pulses" else values
        inside = check(_with(name, stimulus, place, values)).nonzero()
        if not len(inside):
            return ""
        best = int(inside[-1])
        low, high = float(values[best]), float(values[min(best + 1, len(values) - 1)])
    texts = [f"{low:.0f}"] if name == "pulses" else _roundings(high) + _roundings(low)
    return next((text for text in texts if 0 < float(text) < now and _passes(name, text, stimulus, place, check)), "")


def _passes(name: str, text: str, stimulus: Stimulus, place: int, check: _Check) -> bool:
    """Whether a setting is allowed as it is printed."""
    return bool(check(_with(name, stimulus, place, torch.tensor([float(text)], dtype=torch.float64))))


def _roundings(value: float) -> list[str]:
    """A value at three significant digits, and one step below, as text."""
    near = float(f"{value:.2e}")
    step = 10.0 ** (int(f"{value:e}".partition("e")[2]) - 2)
    return [f"{near:.6g}", f"{near - step:.6g}"]


def _with(name: str, stimulus: Stimulus, place: int, values: Tensor) -> Stimulus:
    """The stimulus once per value of one setting; currents scale together so that `place` carries the value."""
    many = stimulus.to(values).expand(len(values))
    if name == "pulse_width_us":
        return replace(many, pulse_width_us=values)
    if name == "frequency_hz":
        return replace(many, frequency_hz=values)
    if name == "pulses":
        return replace(many, pulses=values)
    return replace(many, amplitude_ma=many.amplitude_ma * (values / many.amplitude_ma[0, place].abs()).unsqueeze(-1))
