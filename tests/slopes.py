"""Slopes of how large forecast effects are, beside steps as large as those of the protocol."""

from dataclasses import replace

import torch

from stimopt.forecaster import Context, Forecaster
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator

COUNT = 32


def trains(montage: Montage) -> Stimulus:
    """Two to five pulses at 16 to 96 Hz, each from a neighbouring pair, ending with the window or inside it."""
    pairs = montage.neighbour_pairs()
    sites = [pulse_train(montage, pairs[n % len(pairs)], amplitude_ma=3.0, frequency_hz=16.0) for n in range(COUNT)]
    many = concatenate([site.reshape(1) for site in sites])
    hz = 16 * 6 ** torch.rand(COUNT, generator=generator(4, "slopes"), dtype=torch.float64)
    pulses = 2.0 + torch.arange(COUNT, dtype=torch.float64) % 4
    return replace(many, frequency_hz=hz, pulses=pulses, onset_s=many.onset_s + 0.08)


def slope_and_step(model: Forecaster, now: Context, knob: str, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each train's effect in the logarithm of a knob: the slope, and the central difference over such a step."""
    given = trains(now.montage)
    still = model.forecast(now, no_stimulus(now.montage, ())).mean.detach()

    def size(by: torch.Tensor) -> torch.Tensor:
        turned = getattr(given, knob) * (1 + (by.unsqueeze(-1) if knob == "amplitude_ma" else by))
        effect = model.forecast(now, replace(given, **{knob: turned})).mean - still
        return effect.square().mean((1, 2)).sqrt()

    by = torch.zeros(COUNT, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(size(by).sum(), by)
    with torch.no_grad():
        return slope, (size(by + step) - size(by - step)) / (2 * step)
