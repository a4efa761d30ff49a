"""Channels that nobody recorded: the foundation model asked for a window at a place.

    forecast = impute(forecaster, context, stimulus, places_mm)            # in units of the mean spread
    forecast = impute(forecaster, context, stimulus, scalp_mm, "scalp")    # EEG from iEEG

The network was trained with some channels only asked for, so a place is a question that it knows. Its answer for
another kind of electrode than it was trained on is an extrapolation, and nothing here says how good it is: judge
it on channels that were recorded and are kept back (`forecast_kept_back`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.errors import ShapeError
from stimopt.forecaster import Context, GaussianForecast
from stimopt.montage import Channel, Contact, ContactKind
from stimopt.response import Response
from stimopt.stimulus import Stimulus

from .ieeg_foundation import FoundationForecaster
from .ieeg_subject import KINDS, Shots, Subject


@torch.no_grad()
def impute(
    forecaster: FoundationForecaster, context: Context, stimulus: Stimulus, place_mm: Float[Tensor, "query 3"],
    kind: ContactKind | None = None,
) -> GaussianForecast:  # fmt: skip
    """The window after a context at places where nobody recorded, asked for by place alone.

    Its unit is the mean spread of the recorded channels: how large a channel there would be at rest cannot be known
    from its place, so shapes and ratios count and uV are nominal. It forecasts the coming window, not the
    context's own.

    Args:
        forecaster: Of the patient's recorded channels.
        context: Of the recorded channels.
        stimulus: At the patient's contacts.
        place_mm: In the frame of the patient's montage.
        kind: Of the electrode, such as "scalp" for EEG; by default what most channels have. What no patient in
            training had is an extrapolation.

    Returns:
        A forecast on channels "query 1", "query 2", and so on.

    Raises:
        ShapeError: If a place is not finite, or context and stimulus do not fit the forecaster.
    """
    if not len(place_mm) or not bool(place_mm.isfinite().all()):
        raise ShapeError(f"place_mm is {place_mm.tolist()}; give finite places [query, 3] in mm.")
    kept = replace(forecaster.window, context_samples=0)
    kept.context_signal(context, stimulus)  # refuses what does not fit, before channels are added
    wide, queries = _queried(forecaster, place_mm, kind), len(place_mm)
    montage = wide.window.montage
    unknown = F.pad(context.signal_uv, (0, 0, 0, queries), value=math.nan)
    asked = replace(stimulus, montage=montage, amplitude_ma=F.pad(stimulus.amplitude_ma, (0, queries)))
    whole = wide.forecast(Context(montage, unknown, context.rate_hz), asked)
    channels = len(montage.channels)
    return _only(whole, range(channels - queries, channels))


@torch.no_grad()
def forecast_kept_back(
    forecaster: FoundationForecaster, context: Context, stimulus: Stimulus, names: Sequence[str]
) -> GaussianForecast:
    """Recorded channels forecast as if they were not: to compare with what they did.

    Their context, what rest told of them and past responses are hidden; their spread, which is the unit, is not.

    Args:
        forecaster: Of the patient.
        context: Of all channels.
        stimulus: At the patient's contacts.
        names: Channels to keep back.

    Raises:
        MontageError: If a channel is not in the montage.
    """
    index = [forecaster.window.montage.channel_index(name) for name in names]
    subject, past = forecaster.subject, forecaster.past
    heard = subject.heard.clone()
    heard[index] = False
    known = heard.unsqueeze(-1)
    hidden = {name: getattr(past, name) & known for name in ("heard", "good")}
    hidden |= {name: getattr(past, name) * known for name in ("context", "response")}
    subject = replace(subject, heard=heard, fingerprint=subject.fingerprint * known)
    deaf = replace(forecaster, subject=subject, past=replace(past, **hidden))
    unknown = torch.where(known, context.signal_uv, math.nan)
    return _only(deaf.forecast(replace(context, signal_uv=unknown), stimulus), index)


def _only(whole: GaussianForecast, index: Sequence[int]) -> GaussianForecast:
    """Some channels of a forecast."""
    template, rows = whole.template, list(index)
    montage = replace(template.montage, channels=tuple(template.montage.channels[i] for i in rows))
    response = Response(montage, template.signal_uv[..., rows, :], template.rate_hz, template.start_s)
    return GaussianForecast(response, whole.scale_uv[..., rows, :], whole.factors_uv[..., rows, :])


def _queried(forecaster: FoundationForecaster, place_mm: Tensor, kind: ContactKind | None) -> FoundationForecaster:
    """The forecaster with further channels that are only asked for."""
    window, queries = forecaster.window, len(place_mm)
    number = int(forecaster.subject.kind.mode().values) if kind is None else KINDS.index(kind)
    names = [f"query {i + 1}" for i in range(queries)]
    contacts = [
        Contact(name, (x, y, z), kind=cast("ContactKind", KINDS[number]), shaft=name)
        for name, (x, y, z) in zip(names, place_mm.tolist(), strict=True)
    ]
    montage = replace(
        window.montage,
        contacts=(*window.montage.contacts, *contacts),
        channels=(*window.montage.channels, *(Channel(name, name) for name in names)),
    )
    subject = _widened(forecaster.subject, place_mm, number)
    past = _unanswered(forecaster.past, queries)
    return replace(forecaster, window=replace(window, montage=montage), subject=subject, past=past)


def _widened(subject: Subject, place_mm: Tensor, kind: int) -> Subject:
    count = len(place_mm)

    def more(row: Tensor, value: Tensor | float | bool) -> Tensor:
        return torch.cat([row, torch.as_tensor(value).to(row).expand(count, *row.shape[1:])])

    return Subject(
        place_mm=more(subject.place_mm, place_mm), kind=more(subject.kind, kind),
        shaft=torch.cat([subject.shaft, subject.shaft.max() + 1 + torch.arange(count).to(subject.shaft)]),
        bipolar=more(subject.bipolar, False), fingerprint=more(subject.fingerprint, 0.0),
        rest_uv=more(subject.rest_uv, subject.rest_uv.mean()),
        spread_uv=more(subject.spread_uv, subject.spread_uv.mean()), tie=F.pad(subject.tie, (0, 0, 0, count, 0, count)),
        heard=more(subject.heard, False), there=more(subject.there, True),
        contact_mm=more(subject.contact_mm, math.nan),
    )  # fmt: skip


def _unanswered(past: Shots, queries: int) -> Shots:
    """Past trials in which the further channels were not recorded."""
    names = ("context", "heard", "response", "good")
    wider = {name: F.pad(getattr(past, name), (0, 0, 0, queries)) for name in names}
    return replace(past, **wider, charge=F.pad(past.charge, (0, queries)))
