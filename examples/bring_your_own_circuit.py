"""A circuit of your own: write its equation, and it becomes a patient that any policy can search.

Shows the methods of a Dynamics with a Stuart-Landau oscillator near its Hopf point,
and how `Network`, `point_source_drive`, `distance_sensing` and `Twin` turn it into a system
that is held to the contract, gradients included. Every number here is simulated.

    dz/dt = (a + i omega - b |z|^2) z + g u

damped where a < 0, a rhythm of amplitude sqrt(a / b) where a > 0. A steady push u moves the
rhythm off its centre, where b |z|^2 exceeds a, and quenches it. Reference: the local model
of Deco et al., Scientific Reports 7 (2017) 3095, here with b and g to give it units.

Run: python examples/bring_your_own_circuit.py
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.features import band_power
from stimopt.landscape import one_window
from stimopt.montage import Contact, monopolar
from stimopt.simulators import (
    Dynamics,
    Network,
    Parameter,
    Twin,
    distance_sensing,
    exponential_distance_connectome,
    point_source_drive,
)
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator, map_tensors
from stimopt.testing import check_system


@dataclass(frozen=True)
class StuartLandau(Dynamics):
    """One oscillator a region.

    State   [*batch, region, 2]   real and imaginary part, mV
    Drive   [*batch, region, 1]   afferent firing, 1/s, pushes the real part
    """

    growth_per_s: Float[Tensor, "*batch region"]  # a: damped below zero, rhythmic above
    frequency_hz: Parameter
    bend_per_s_mv2: Parameter = 20.0  # b
    mv_per_spike: Parameter = 0.1  # g, chosen so that a few mA quench
    noise_mv: Parameter = 1.0  # per square root of a second

    states: ClassVar[tuple[str, ...]] = ("x_mv", "y_mv")
    inputs: ClassVar[tuple[str, ...]] = ("afferents_hz",)
    outputs: ClassVar[tuple[str, ...]] = ("x_mv",)
    noisy: ClassVar[tuple[str, ...]] = ("x_mv",)  # as the drive
    source: ClassVar[str] = "Deco et al. 2017, Sci Rep 7:3095"
    # RK4 errs by (omega dt)^5 / 120 in phase a step: at 12 Hz, 2e-4 rad in half a second
    largest_dt_s: ClassVar[float] = 2e-3

    @property
    def rest(self) -> Tensor:
        """At the fixed point."""
        return self.growth_per_s.new_zeros(*self.growth_per_s.shape, 2)

    def drift(self, state: Tensor, drive: Tensor) -> Tensor:
        """The equation above."""
        x, y = state.unbind(-1)
        pull = self.growth_per_s - self.bend_per_s_mv2 * (x.square() + y.square())
        omega = 2 * math.pi * self.frequency_hz
        return torch.stack([pull * x - omega * y + self.mv_per_spike * drive[..., 0], pull * y + omega * x], -1)

    def noise(self, state: Tensor) -> Tensor:
        """The same at any state."""
        return torch.zeros_like(state[..., :1]) + self.noise_mv

    def emission(self, state: Tensor) -> Tensor:
        """The real part, mV."""
        return state[..., :1]

    def potential_mv(self, state: Tensor) -> Tensor:
        """The real part, mV."""
        return state[..., 0]


def main(quick: bool = False) -> None:
    places_mm = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [9.0, 9.0, 0.0]], dtype=torch.float64)
    tracts = exponential_distance_connectome(places_mm, generator(1, "tracts"))
    circuit = StuartLandau(
        growth_per_s=torch.tensor(
            [20.0, -5.0, -5.0, -5.0], dtype=torch.float64
        ),  # the first region is the rhythmic one
        frequency_hz=torch.tensor([10.0, 11.0, 12.0, 9.0], dtype=torch.float64),
    )
    contacts = [Contact(f"A{i + 1}", (3.5 * i, 2.0, 0.0), 0.05, "depth", "A") for i in range(4)]
    montage = monopolar(contacts, frame="virtual")
    patient = Twin(
        circuit=Network(circuit, tracts.weights, gain=5.0, delay_s=tracts.delays_s(3.0)),
        drive=point_source_drive(montage, places_mm),
        sensing=distance_sensing(montage, places_mm, noise_uv=5.0),
        montage=montage,
        window_s=0.5 if quick else 2.0,
        dt_s=2e-3,
    )

    silence = no_stimulus(montage)
    trains = [
        pulse_train(montage, "A1-A2", amplitude_ma=amplitude_ma, frequency_hz=100.0, pulses=100 * patient.window_s)
        for amplitude_ma in (1.0, 4.0, 8.0)
    ]
    stimuli = concatenate(
        [map_tensors(stimulus, lambda tensor: tensor.unsqueeze(0)) for stimulus in [silence, *trains]]
    )
    check_system(patient, stimuli, differentiable=True)  # raises and names the clause that is broken
    print("a Stuart-Landau circuit keeps the contract of a system, gradients through two windows included")

    print(
        f"one simulated window of {patient.window_s:g} s, {patient.regions} regions, {len(montage.channels)} channels"
    )
    for name, window in zip(
        ("silence", "1 mA", "4 mA", "8 mA"), one_window(patient, [silence, *trains], seed=1), strict=True
    ):
        power_uv2 = float(band_power(window, (8.0, 13.0))[0])
        print(f"  {name:<8} power of {montage.channels[0].name} at 8-13 Hz {power_uv2:8.0f} uV^2")


if __name__ == "__main__":
    main()
