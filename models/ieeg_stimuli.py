"""Stimuli that a virtual patient of a corpus gets: broad draws, and neighbours that differ in one thing.

Every site comes about equally often, polarities both ways. A third are single pulses, a
third bursts of 2 to 10 pulses, a third trains of 0.1 to 0.5 s; all begin with the window and
end within it. Currents, widths and frequencies are drawn evenly on a logarithmic scale, since
what a change does goes with its ratio. The bounds are chosen around what is delivered to people:
mapping pulses of 1 to 8 mA and 100 to 300 us, trains of up to 120 Hz. Where it is asked for, some currents are shared
with the pair beside, as on the way from one site to the next.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import MontageError
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus, contact_weights, no_stimulus
from stimopt.tensors import where_rows

AMPLITUDE_MA = (0.3, 8.0)
PULSE_WIDTH_US = (60.0, 500.0)
FREQUENCY_HZ = (2.0, 120.0)
TRAIN_S = (0.1, 0.5)
BURST_PULSES = (2, 10)
LONGEST_S = 0.5  # of what is delivered: the window
SINGLE_HZ = (0.2, 120.0)  # of a single pulse, where it means nothing: drawn, so that a model learns that

AMPLITUDE_RATIO, FREQUENCY_RATIO, WIDTH_RATIO = (0.6, 1.6), (0.7, 1.4), (0.6, 1.6)
CHANGES = (0.2, 0.35, 0.15, 0.3)  # how often amplitude, frequency, width and site change: the hard ones more often
PART_MOVED = (0.1, 1.0)  # of the current, half of the times that the site changes; else all of it


def site_weights(montage: Montage) -> Float[Tensor, "site contact"]:
    """Share of the current at each contact for every neighbouring pair on a shaft, the first contact the cathode.

    Raises:
        MontageError: If no two contacts share a shaft.
    """
    pairs = montage.neighbour_pairs()
    if not pairs:
        raise MontageError(
            "no two contacts of this montage share a shaft, so there is no pair to stimulate; name shafts."
        )
    return torch.stack([contact_weights(montage, pair) for pair in pairs])


def draw_stimuli(montage: Montage, n: int, source: torch.Generator) -> Stimulus:
    """`n` stimuli at neighbouring pairs, each of them with a current; float64.

    Args:
        montage: Whose shafts are stimulated.
        n: How many.
        source: Draws them.

    Raises:
        MontageError: If no two contacts share a shaft.
    """
    weights = site_weights(montage)
    rounds = math.ceil(n / len(weights))
    sites = torch.cat(
        [torch.randperm(len(weights), generator=source) for _ in range(rounds)] or [torch.zeros(0).long()]
    )
    sign = 2.0 * torch.randint(2, (n,), generator=source) - 1
    amplitude_ma = (sign * _log_uniform(AMPLITUDE_MA, n, source)).unsqueeze(-1) * weights[sites[:n]]
    frequency_hz, pulses = _trains(n, source)
    zero = torch.zeros(n, dtype=torch.float64)
    return Stimulus(montage, amplitude_ma, frequency_hz, _log_uniform(PULSE_WIDTH_US, n, source), pulses, zero, zero)


def with_shares(stimulus: Stimulus, share: float, source: torch.Generator) -> Stimulus:
    """The same stimuli, a share of them with a part of their current moved to a pair beside.

    Args:
        stimulus: One batch axis, from `draw_stimuli`.
        share: How many, 0 to 1; the stream is left alone at 0.
        source: Draws which, where to and how much, evenly.
    """
    if not share:
        return stimulus
    n, whole = stimulus.batch_shape[0], stimulus.amplitude_ma
    moved = _moved(whole, site_weights(stimulus.montage), source)
    part = torch.rand(n, 1, generator=source, dtype=torch.float64)
    chosen = torch.zeros(n, 1, dtype=torch.bool)
    chosen[torch.randperm(n, generator=source)[: round(share * n)]] = True
    return replace(stimulus, amplitude_ma=torch.where(chosen, whole + part * (moved - whole), whole))


def with_silence(stimulus: Stimulus, share: float, source: torch.Generator) -> Stimulus:
    """The same stimuli, a share of them, at random places, replaced by the explicit zero."""
    n = stimulus.batch_shape[0]
    silent = torch.zeros(n, dtype=torch.bool)
    silent[torch.randperm(n, generator=source)[: round(share * n)]] = True
    return _where(silent, no_stimulus(stimulus.montage, (n,)), stimulus)


def nearby(stimulus: Stimulus, source: torch.Generator, changes: Sequence[float] = CHANGES) -> Stimulus:
    """Another stimulus for each: amplitude, frequency, pulse width or site changed, and nothing else.

    Half of the changes of site move a part of the current only, so that contacts share it as they do on the way from
    one site to the next. A single pulse keeps its frequency, a montage of one pair its site: their amplitude changes. A
    silent stimulus is followed by any drawn one. All still end within the window.

    Args:
        stimulus: One batch axis, from `draw_stimuli`, `with_shares` or `with_silence`.
        source: Draws what changes and by how much.
        changes: How often amplitude, frequency, width and site do.
    """
    n = stimulus.batch_shape[0]
    what = torch.multinomial(torch.tensor(changes), n, replacement=True, generator=source) if n else torch.zeros(0)
    ratios = [_log_uniform(bounds, n, source) for bounds in (AMPLITUDE_RATIO, FREQUENCY_RATIO, WIDTH_RATIO)]
    moved = _moved(stimulus.amplitude_ma, site_weights(stimulus.montage), source)
    drawn = draw_stimuli(stimulus.montage, n, source)
    instead = ((what == 1) & (stimulus.pulses <= 1)) | ((what == 3) & (moved == stimulus.amplitude_ma).all(-1))
    what = torch.where(instead, 0, what)
    low, high = PART_MOVED
    part = low + (high - low) * torch.rand(n, 1, generator=source, dtype=torch.float64)
    part = torch.where(torch.rand(n, 1, generator=source) < 0.5, part, 1.0)
    moved = stimulus.amplitude_ma + part * (moved - stimulus.amplitude_ma)
    amplitude_ma = where_rows(what == 0, stimulus.amplitude_ma * ratios[0].unsqueeze(-1), stimulus.amplitude_ma)
    changed = replace(
        stimulus,
        amplitude_ma=where_rows(what == 3, moved, amplitude_ma),
        frequency_hz=torch.where(what == 1, _retuned(stimulus, ratios[1]), stimulus.frequency_hz),
        pulse_width_us=torch.where(what == 2, stimulus.pulse_width_us * ratios[2], stimulus.pulse_width_us),
    )
    return _where(stimulus.silent, drawn, changed)


def _trains(n: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frequency and number of pulses: single, burst or train, a third of each."""
    kind = torch.randint(3, (n,), generator=source)
    burst = torch.randint(BURST_PULSES[0], BURST_PULSES[1] + 1, (n,), generator=source).double()
    slowest_hz = (burst / LONGEST_S).clamp_min(FREQUENCY_HZ[0])  # a slower burst would outlast the window
    place = torch.rand(n, generator=source, dtype=torch.float64)
    burst_hz = slowest_hz * (FREQUENCY_HZ[1] / slowest_hz) ** place
    train_hz, single_hz = _log_uniform(FREQUENCY_HZ, n, source), _log_uniform(SINGLE_HZ, n, source)
    low, high = TRAIN_S
    train_s = low + (high - low) * torch.rand(n, generator=source, dtype=torch.float64)
    train = (train_s * train_hz).floor().clamp_min(1)
    frequency_hz = torch.where(kind == 0, single_hz, torch.where(kind == 1, burst_hz, train_hz))
    return frequency_hz, torch.where(kind == 0, torch.ones_like(burst), torch.where(kind == 1, burst, train))


def _retuned(stimulus: Stimulus, ratio: Tensor) -> Tensor:
    """The frequency times a ratio, or divided by it where the train would outlast the window."""
    slower = stimulus.frequency_hz * ratio
    return torch.where(stimulus.pulses > LONGEST_S * slower, stimulus.frequency_hz / ratio, slower)


def _moved(amplitude_ma: Tensor, weights: Tensor, source: torch.Generator) -> Tensor:
    """The same current and polarity at a pair that shares a contact with this one, or else at any other."""
    n, likeness = len(amplitude_ma), weights.abs() @ weights.abs().mT  # 2 for itself, 1 for those that share a contact
    size = (amplitude_ma @ weights.mT) / 2  # [stimulus, site]: the signed current at its own site, half at those beside
    if bool((several := (amplitude_ma != 0).sum(-1) > 2).any()):  # shared between pairs: how much each one has
        size = torch.where(several.unsqueeze(-1), amplitude_ma @ torch.linalg.pinv(weights), size)
    site = size.abs().argmax(-1)
    own_ma = size.gather(-1, site.unsqueeze(-1))
    current_ma = torch.where(several.unsqueeze(-1), own_ma.sign() * size.abs().sum(-1, keepdim=True), own_ma)
    open_sites = torch.where(likeness == 1, 1e6, 1.0).fill_diagonal_(0.0 if len(weights) > 1 else 1.0)
    chosen = torch.multinomial(open_sites[site].double(), 1, generator=source)[:, 0] if n else site
    moved: Tensor = current_ma * weights[chosen]
    return moved


def _log_uniform(bounds: tuple[float, float], n: int, source: torch.Generator) -> Tensor:
    low, high = bounds
    spread: Tensor = low * (high / low) ** torch.rand(n, generator=source, dtype=torch.float64)
    return spread


def _where(keep: Tensor, kept: Stimulus, other: Stimulus) -> Stimulus:
    def chosen(name: str) -> Tensor:
        return where_rows(keep, getattr(kept, name), getattr(other, name))

    return replace(
        other,
        amplitude_ma=chosen("amplitude_ma"),
        frequency_hz=chosen("frequency_hz"),
        pulse_width_us=chosen("pulse_width_us"),
        pulses=chosen("pulses"),
        onset_s=chosen("onset_s"),
        interphase_us=chosen("interphase_us"),
    )
