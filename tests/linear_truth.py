"""A brain whose answer is known: kernels on rectified charge that fall off with distance, over a noisy rhythm.

The answer to one mA at a contact is a damped wave at every channel, of a size that falls
with distance (20 mm scale), the cathode weighing more than the anode. The background is
an autoregression of order two per channel around 10 Hz. All of it is linear in the
rectified current, so the best possible forecast is known in closed form.
"""

import math
from dataclasses import dataclass

import torch

from stimopt.forecaster import Context, Trials
from stimopt.montage import Contact, Montage, monopolar
from stimopt.response import Response
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.stimulus import Stimulus, pulse_train
from stimopt.tensors import concatenate, map_tensors

RATE_HZ = 250.0
POLE = 0.96  # of the background: loses half in 17 samples


def shafts(channels: int = 12) -> Montage:
    """Two shafts of depth contacts, 5 mm apart, 30 mm between the shafts."""
    half = channels // 2
    contacts = [
        Contact(f"{name}{i + 1}", (30.0 * side, 5.0 * i, 0.0), 0.05, "depth", name)
        for side, name in enumerate("AB")
        for i in range(half)
    ]
    return monopolar(contacts, "test")


@dataclass(frozen=True)
class LinearTruth:
    """The system and its space."""

    montage: Montage
    space: StimulationSpace
    samples: int = 125
    gain_uv: float = 1000.0
    noise_uv: float = 2.0

    @property
    def kernel(self) -> torch.Tensor:
        """uV per mA of mean current in one sample, [channel, input, lag]."""
        place = self.montage.contact_position_mm
        fall = (-torch.cdist(place, place) / 20.0).exp()
        sign = torch.ones(len(place), dtype=torch.float64)
        sign[1::2] = -1.0
        time_s = torch.arange(self.samples, dtype=torch.float64) / RATE_HZ
        wave = (2 * math.pi * 8.0 * time_s).sin() * (-time_s / 0.06).exp()
        fall = fall * sign.unsqueeze(-1)  # neighbours answer with opposite sign, as across a source
        spatial = torch.cat([fall, 0.4 * fall], 1)
        return self.gain_uv * spatial.unsqueeze(-1) * wave

    def effect(self, stimulus: Stimulus) -> torch.Tensor:
        """The mean response that the stimulus adds."""
        signed = stimulus.amplitude_ma.double()
        polar = torch.cat([(-signed).clamp_min(0), signed.clamp_min(0)], -1)
        drive = polar.unsqueeze(-1) * pulses_per_sample(stimulus, self.samples).unsqueeze(-2)
        out = torch.zeros(*drive.shape[:-2], len(self.montage.channels), self.samples, dtype=torch.float64)
        kernel = self.kernel
        for lag in range(self.samples):
            out[..., lag:] += torch.einsum("ci,...it->...ct", kernel[..., lag], drive[..., : self.samples - lag])
        return out

    def background(self, trials: int, source: torch.Generator) -> torch.Tensor:
        """Rhythm without stimulation, 3 windows long so that the last two are stationary."""
        drawn = torch.randn(trials, len(self.montage.channels), 3 * self.samples, generator=source, dtype=torch.float64)
        turn = 2 * POLE * math.cos(2 * math.pi * 10.0 / RATE_HZ)
        signal = torch.zeros_like(drawn)
        for t in range(2, signal.shape[-1]):
            signal[..., t] = turn * signal[..., t - 1] - POLE**2 * signal[..., t - 2] + self.noise_uv * drawn[..., t]
        return signal[..., self.samples :]

    def trials(self, stimulus: Stimulus, seed: int) -> Trials:
        """One recorded trial per stimulus."""
        background = self.background(len(stimulus.pulses), torch.Generator().manual_seed(seed))
        before, after = background.split(self.samples, -1)
        response = after + self.effect(stimulus)
        context = Context(self.montage, before, RATE_HZ)
        return Trials(context, stimulus, Response(self.montage, response, RATE_HZ))

    def random_stimuli(self, count: int, seed: int, amplitude: tuple[float, float] = (0.0, 1.0)) -> Stimulus:
        """Uniform over the cube, amplitude between two shares of its range."""
        source = torch.Generator().manual_seed(seed)
        unit = torch.rand(count, self.space.dimension, generator=source, dtype=torch.float64)
        axis = self.space.slices()["amplitude_ma"]
        low, high = amplitude
        unit[:, axis] = low + (high - low) * unit[:, axis]
        return self.space.stimulus(unit)

    def ceiling(self, trials: Trials) -> float:
        """R2 of the best forecast: the true effect plus the free run of the background."""
        turn = 2 * POLE * math.cos(2 * math.pi * 10.0 / RATE_HZ)
        last, before = trials.context.signal_uv[..., -1], trials.context.signal_uv[..., -2]
        steps = []
        for _ in range(self.samples):
            last, before = turn * last - POLE**2 * before, last
            steps.append(last)
        best = torch.stack(steps, -1) + self.effect(trials.stimulus)
        truth = trials.response.signal_uv
        error = (truth - best).square().sum((0, -1))
        return float((1 - error / (truth - truth.mean((0, -1), keepdim=True)).square().sum((0, -1))).mean())


def pulses_per_sample(stimulus: Stimulus, samples: int) -> torch.Tensor:
    """Share of each sample that first phases fill, each pulse in the sample where it starts, [trial, time]."""
    share = torch.zeros(len(stimulus.pulses), samples, dtype=torch.float64)
    for row in range(len(share)):
        for k in range(int(stimulus.pulses[row])):
            sample = math.floor(float(stimulus.onset_s[row] + k / stimulus.frequency_hz[row]) * RATE_HZ)
            if sample < samples:
                share[row, sample] += float(stimulus.pulse_width_us[row]) * 1e-6 * RATE_HZ
    return share


def linear_truth(channels: int = 12) -> LinearTruth:
    """The usual one: pairs x amplitude x frequency x width, trains of 4 pulses."""
    montage = shafts(channels)
    template = pulse_train(montage, "A1-A2", amplitude_ma=2.0, pulses=4, frequency_hz=20.0, onset_s=0.02)
    parameters = (
        contact_site(template, montage.neighbour_pairs()),
        Parameter("amplitude_ma", "continuous", 0.5, 4.0, unit="mA"),
        Parameter("frequency_hz", "log", 10.0, 60.0, unit="Hz"),
        Parameter("pulse_width_us", "continuous", 100.0, 400.0, unit="us"),
    )
    return LinearTruth(montage, StimulationSpace(parameters, template))


def silent_rows(stimulus: Stimulus, rows: int) -> Stimulus:
    """The same stimuli, the last `rows` of them silenced."""
    quiet = map_tensors(stimulus[-rows:], lambda tensor: tensor)
    quiet = type(quiet)(**{**quiet.__dict__, "amplitude_ma": 0 * quiet.amplitude_ma})
    return concatenate([stimulus[:-rows], quiet])
