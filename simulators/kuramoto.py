"""Kuramoto phase oscillators: a rhythm reduced to its phase, with a response to stimuli that depends on it.

    theta_i' = natural_i + sum_j w_ij sin(theta_j - theta_i - lag) + conductance_i Z(theta_i) u(t) + noise

A sine of a difference is sin(theta_j) cos(theta_i + lag) - cos(theta_j) sin(theta_i + lag), so what a region
sends is its sine and its cosine and any network, late or not, can carry them; `kuramoto_network` says where
they enter. Z is the phase response: how far a stimulus of unit charge moves the phase, by the phase at which
it comes. A constant Z only changes the pace, as the "dummy" response of Kuzmina et al. 2025; with a sine or a
cosine the same pulse gathers or scatters an ensemble by its timing (Tass 2003; Weerasinghe et al. 2019).

State   [*batch, region, 1]   phase in rad, not wrapped: whole turns may be taken off between simulations
Drive   [*batch, region, 3]   stimulus, 1/s; weighted sum of sines received, rad/s; of cosines received, rad/s
Emits   [*batch, region, 2]   sine and cosine of the phase
Output  [*batch, region]      cosine of the phase, as mV

References: Kuramoto, Chemical Oscillations, Waves, and Turbulence, Springer 1984; Sakaguchi and Kuramoto, Progress of
Theoretical Physics 76 (1986) 576-581 (lag); Tass, Progress of Theoretical Physics Supplement 150 (2003) 281-296;
Weerasinghe et al., PLoS Computational Biology 15 (2019) e1006575 (the response as a Fourier series).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State, step_at_pace
from .network import Network


@dataclass(frozen=True)
class Kuramoto(Dynamics):
    """A phase oscillator in each region, uncoupled.

    Attributes:
        natural_per_s: Angular frequency of each region alone, rad/s.
        conductance: How much of the stimulus reaches each region.
        response_rad: Mean of the phase response Z over the phase, rad.
        response_cosines_rad: Its cosine coefficients, for one turn, two turns and so on, rad.
        response_sines_rad: Its sine coefficients, likewise.
        lag_rad: Lag of Sakaguchi and Kuramoto, taken off every phase difference.
        noise_rad: White noise on the phase, rad per square root of a second.
        start_rad: Phase where a simulation begins.
        amplitude_mv: Amplitude of the potential.
    """

    natural_per_s: Float[Tensor, "*batch region"]
    conductance: Parameter = 1.0
    response_rad: Parameter = 1.0
    response_cosines_rad: tuple[Parameter, ...] = ()
    response_sines_rad: tuple[Parameter, ...] = ()
    lag_rad: Parameter = 0.0
    noise_rad: Parameter = 0.0
    start_rad: Parameter = 0.0
    amplitude_mv: Parameter = 1.0

    states: ClassVar[tuple[str, ...]] = ("phase_rad",)
    inputs: ClassVar[tuple[str, ...]] = ("stimulus_per_s", "sines_rad_per_s", "cosines_rad_per_s")
    outputs: ClassVar[tuple[str, ...]] = ("sine", "cosine")
    noisy: ClassVar[tuple[str, ...]] = ("phase_rad",)
    source: ClassVar[str] = "Kuramoto 1984, Chemical Oscillations, Waves, and Turbulence, Springer"

    @property
    def largest_dt_s(self) -> float:
        """2 ms at 200 rad/s: on `kuramoto_grid`, halving it moves potentials by 3e-5 of their deviation in 0.4 s.

        A pulse of half a step, given as its mean, moves the field by 1e-3 of its own.
        """
        return step_at_pace(2e-3, 200.0, self.natural_per_s)

    @property
    def rest(self) -> State:
        """All at the phase where they start; a phase oscillator never rests."""
        return (torch.zeros_like(self.natural_per_s) + self.start_rad).unsqueeze(-1)

    def response(self, phase_rad: Float[Tensor, "*batch region"]) -> Float[Tensor, "*batch region"]:
        """The phase response Z: phase gained per unit charge of stimulus, by the phase at which it comes, rad."""
        gained = torch.zeros_like(phase_rad) + self.response_rad
        for turns, size in enumerate(self.response_cosines_rad, 1):
            gained = gained + size * torch.cos(turns * phase_rad)
        for turns, size in enumerate(self.response_sines_rad, 1):
            gained = gained + size * torch.sin(turns * phase_rad)
        return gained

    def drift(self, state: State, drive: Drive) -> State:
        """Kuramoto's equation with the sum over the others taken from the drive."""
        phase = state[..., 0]
        stimulus, sines, cosines = drive.unbind(-1)
        lagged = phase + self.lag_rad
        pulled = sines * torch.cos(lagged) - cosines * torch.sin(lagged)
        pushed = self.conductance * self.response(phase) * stimulus
        return (self.natural_per_s + pulled + pushed).unsqueeze(-1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Additive, on the phase."""
        return (torch.zeros_like(state[..., 0]) + self.noise_rad).unsqueeze(-1)

    def emission(self, state: State) -> Emission:
        """Sine and cosine of the phase."""
        return torch.cat([torch.sin(state), torch.cos(state)], -1)

    def emission_rate(self, state: State, rate: State) -> Emission:
        """cos(theta) theta' and -sin(theta) theta'."""
        return torch.cat([torch.cos(state) * rate, -torch.sin(state) * rate], -1)

    def potential_mv(self, state: State) -> Potential:
        """The cosine of the phase, as large as `amplitude_mv`."""
        return self.amplitude_mv * torch.cos(state[..., 0])


def sine_entry(circuit: Kuramoto) -> Float[Tensor, "input output"]:
    """Where sines and cosines enter, so that a network or a mean field couples by sines of phase differences."""
    return circuit.natural_per_s.new_tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def kuramoto_network(
    circuit: Kuramoto,
    weights: Float[Tensor, "*weighted region region"],
    *,
    gain: Parameter = 1.0,
    delay_s: Float[Tensor, "region region"] | None = None,
) -> Network:
    """Oscillators coupled by gain * weights_ij * sin(theta_j(t - delay_ij) - theta_i(t) - lag), in rad/s.

    Args:
        circuit: The oscillators.
        weights: `[*batch, to, from]`. All-to-all coupling of strength K is 1/N throughout with a gain of K;
            `mean_of_all` gives the same without the matrix.
        gain: Coupling strength, rad/s, a number or [*batch].
        delay_s: Conduction delay of each tract; None where nothing is late.
    """
    return Network(circuit, weights, gain=gain, delay_s=delay_s, entry=sine_entry(circuit))


def order_parameter(phase_rad: Float[Tensor, "*batch region"]) -> Float[Tensor, "*batch"]:
    """Length of the mean of exp(i phase) over regions: 1 in unison, 0 when phases cancel."""
    return torch.hypot(torch.cos(phase_rad).mean(-1), torch.sin(phase_rad).mean(-1))
