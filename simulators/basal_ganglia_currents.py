"""The cells of a basal-ganglia network: thalamic, subthalamic and pallidal, one compartment each.

Each kind of cell is a table of conductances and gates that says how fast its states change while
a current flows in. Everything here is in the papers' units: mV, ms, uA/cm2, mS/cm2, and a
capacitance of 1 uF/cm2. Parameters are numbers, or tensors that broadcast against
[*batch, region, cell], so that cells may differ; one value per patient needs a last axis of 1.

State   [*batch, region, variable, cell]   `variables` of the kind names them
Flow    [*batch, region, cell]             current into the cells from outside, depolarising where positive

References: So, Kent and Grill, J Comput Neurosci 32 (2012) 499-519; gates after Rubin and Terman,
J Comput Neurosci 16 (2004) 211-235. Defaults are those of the authors' deposited model, ModelDB
141699; they were not compared with the tables printed in the two papers.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from .dynamics import Parameter

CellState: TypeAlias = Tensor  # [*batch, region, variable, cell]; the circuit's drift is where shapes are checked:
Flow: TypeAlias = Tensor  # [*batch, region, cell]; checks at every inner call would cost more than the equations


Gate: TypeAlias = tuple[Parameter, Parameter]  # voltage at which it is half open, and width; see `share_open`
Lag: TypeAlias = tuple[Parameter, Parameter, Parameter, Parameter]  # shortest ms, added ms, and a gate; see `lag_ms`


def share_open(gate: Gate, v: Tensor) -> Tensor:
    """How far a gate is open: 1 / (1 + exp(-(v - half) / width)); one of negative width closes as v grows."""
    half, width = gate
    return torch.sigmoid((v - half) / width)


def lag_ms(lag: Lag, v: Tensor) -> Tensor:
    """Time constant of a gate, ms: the shortest, and a share of what is added that follows a gate of its own."""
    shortest, added, half, width = lag
    return shortest + added * torch.sigmoid((v - half) / width)


@dataclass(frozen=True)
class ThalamicCell:
    """A thalamocortical relay cell: leak, sodium, potassium that mirrors sodium, low-threshold calcium.

    Attributes:
        g_leak: Conductances, mS/cm2.
        e_leak: Reversal potentials, mV. The T current reverses at 0 in this cell.
        k_share: Potassium opens as (k_share (1 - h))^4, in place of a gate of its own.
        m: Sodium activation, at once.
        h: Sodium inactivation.
        p: T activation, at once.
        r: T inactivation.
        h_closing: Rate of closing of h: size per ms, voltage, width of exp(-(v - voltage) / width).
        h_opening: Rate of opening of h: size per ms, half, width.
        r_lag: Time constant of r: factor, offset, voltage, width of factor (offset + exp(-(v - voltage) / width)), ms.
    """

    g_leak: Parameter = 0.05
    g_na: Parameter = 3.0
    g_k: Parameter = 5.0
    g_t: Parameter = 5.0
    e_leak: Parameter = -70.0
    e_na: Parameter = 50.0
    e_k: Parameter = -75.0
    e_t: Parameter = 0.0
    k_share: Parameter = 0.75
    m: Gate = (-37.0, 7.0)
    h: Gate = (-41.0, -4.0)
    p: Gate = (-60.0, 6.2)
    r: Gate = (-84.0, -4.0)
    h_closing: tuple[Parameter, Parameter, Parameter] = (0.128, -46.0, 18.0)
    h_opening: tuple[Parameter, Parameter, Parameter] = (4.0, -23.0, 5.0)
    r_lag: tuple[Parameter, Parameter, Parameter, Parameter] = (0.15, 28.0, -25.0, 10.5)

    variables: ClassVar[tuple[str, ...]] = ("v_mv", "h", "r")

    def fast(self, state: CellState) -> tuple[Flow, Flow]:
        """Conductances of sodium and potassium, which make a spike."""
        v, h, _ = state.unbind(-2)
        m = share_open(self.m, v)
        k = (self.k_share * (1 - h)).square().square()
        return self.g_na * m * m * m * h, self.g_k * k

    def rates(self, state: CellState, flow: Flow) -> CellState:
        """Change of each variable, per ms."""
        v, h, r = state.unbind(-2)
        na, k = self.fast(state)
        low_calcium = self.g_t * share_open(self.p, v).square() * r * (v - self.e_t)
        spike = na * (v - self.e_na) + k * (v - self.e_k)
        membrane = flow - self.g_leak * (v - self.e_leak) - spike - low_calcium
        closing = self.h_closing[0] * torch.exp(-(v - self.h_closing[1]) / self.h_closing[2])
        opening = self.h_opening[0] * torch.sigmoid((v - self.h_opening[1]) / self.h_opening[2])
        factor, offset, voltage, width = self.r_lag
        r_lag = factor * (offset + torch.exp(-(v - voltage) / width))
        return torch.stack(
            [membrane, (share_open(self.h, v) - h) * (closing + opening), (share_open(self.r, v) - r) / r_lag], -2
        )

    def decay(self, state: CellState) -> Flow:
        """Decay of the voltage by leak, sodium and potassium, per ms: all that is stiff."""
        na, k = self.fast(state)
        return na + k + self.g_leak

    def settled(self, v: Flow) -> CellState:
        """The state in which every gate has come to rest at a voltage."""
        return torch.stack([v, share_open(self.h, v), share_open(self.r, v)], -2)


@dataclass(frozen=True)
class SubthalamicCell:
    """A subthalamic cell: leak, sodium, potassium, low- and high-threshold calcium, calcium-gated potassium.

    Attributes:
        g_leak: Conductances, mS/cm2.
        e_leak: Reversal potentials, mV.
        m: Sodium activation, at once.
        n: Potassium activation.
        h: Sodium inactivation.
        a: T activation, at once.
        b: How the T current's inactivation b follows r; its value at r = 0 is taken off.
        c: Calcium activation.
        r: What inactivates the T current.
        n_speed: Speeds by which the lags are divided.
        ca_half: Calcium at which half of the calcium-gated potassium is open; calcium has no unit here.
        ca_speed: How fast calcium changes with the current that carries it, per ms.
        ca_pump: Rate at which it is pumped out, in units of ca_speed.
    """

    g_leak: Parameter = 2.25
    g_na: Parameter = 37.0
    g_k: Parameter = 45.0
    g_t: Parameter = 0.5
    g_ca: Parameter = 2.0
    g_ahp: Parameter = 20.0
    e_leak: Parameter = -60.0
    e_na: Parameter = 55.0
    e_k: Parameter = -80.0
    e_ca: Parameter = 140.0
    m: Gate = (-30.0, 15.0)
    n: Gate = (-32.0, 8.0)
    h: Gate = (-39.0, -3.1)
    a: Gate = (-63.0, 7.8)
    b: Gate = (0.4, 0.1)
    c: Gate = (-20.0, 8.0)
    r: Gate = (-67.0, -2.0)
    n_lag: Lag = (1.0, 100.0, -80.0, -26.0)
    h_lag: Lag = (1.0, 500.0, -57.0, -3.0)
    # +68 mV, far above any subthreshold voltage: the lag is 24.6 ms throughout, in the deposited model as here
    r_lag: Lag = (7.1, 17.5, 68.0, -2.2)
    c_lag: Lag = (1.0, 10.0, -80.0, -26.0)
    n_speed: Parameter = 0.75
    h_speed: Parameter = 0.75
    r_speed: Parameter = 0.2
    c_speed: Parameter = 0.08
    ca_half: Parameter = 15.0
    ca_speed: Parameter = 3.75e-5
    ca_pump: Parameter = 22.5

    variables: ClassVar[tuple[str, ...]] = ("v_mv", "n", "h", "r", "c", "calcium")

    def fast(self, state: CellState) -> tuple[Flow, Flow]:
        """Conductances of sodium and potassium, which make a spike."""
        v, n, h = state[..., 0, :], state[..., 1, :], state[..., 2, :]
        m = share_open(self.m, v)
        return self.g_na * m * m * m * h, self.g_k * n.square().square()

    def rates(self, state: CellState, flow: Flow) -> CellState:
        """Change of each variable, per ms."""
        v, n, h, r, c, calcium = state.unbind(-2)
        na, k = self.fast(state)
        a = share_open(self.a, v)
        b = share_open(self.b, r) - share_open(self.b, torch.zeros_like(r))
        inward = (self.g_t * a * a * a * b * b + self.g_ca * c * c) * (v - self.e_ca)
        k = k + self.g_ahp * calcium / (calcium + self.ca_half)
        membrane = flow - self.g_leak * (v - self.e_leak) - na * (v - self.e_na) - k * (v - self.e_k) - inward
        rates = [
            membrane,
            self.n_speed * (share_open(self.n, v) - n) / lag_ms(self.n_lag, v),
            self.h_speed * (share_open(self.h, v) - h) / lag_ms(self.h_lag, v),
            self.r_speed * (share_open(self.r, v) - r) / lag_ms(self.r_lag, v),
            self.c_speed * (share_open(self.c, v) - c) / lag_ms(self.c_lag, v),
            self.ca_speed * (-inward - self.ca_pump * calcium),
        ]
        return torch.stack(rates, -2)

    def decay(self, state: CellState) -> Flow:
        """Decay of the voltage by leak, sodium and potassium, per ms: all that is stiff."""
        na, k = self.fast(state)
        return na + k + self.g_leak

    def settled(self, v: Flow, calcium: float = 0.1) -> CellState:
        """The state in which every gate has come to rest at a voltage, with the deposited model's first calcium."""
        full = torch.full_like(v, calcium)
        return torch.stack(
            [v, share_open(self.n, v), share_open(self.h, v), share_open(self.r, v), share_open(self.c, v), full], -2
        )


@dataclass(frozen=True)
class PallidalCell:
    """A pallidal cell, of the external or internal segment: the currents of a subthalamic cell, with other gates.

    Attributes are named as in `SubthalamicCell`; s is the activation of calcium, at once, and r inactivates the
    T current directly, with the time constant `r_lag_ms`.
    """

    g_leak: Parameter = 0.1
    g_na: Parameter = 120.0
    g_k: Parameter = 30.0
    g_t: Parameter = 0.5
    g_ca: Parameter = 0.15
    g_ahp: Parameter = 10.0
    e_leak: Parameter = -65.0
    e_na: Parameter = 55.0
    e_k: Parameter = -80.0
    e_ca: Parameter = 120.0
    m: Gate = (-37.0, 10.0)
    n: Gate = (-50.0, 14.0)
    h: Gate = (-58.0, -12.0)
    a: Gate = (-57.0, 2.0)
    s: Gate = (-35.0, 2.0)
    r: Gate = (-70.0, -2.0)
    n_lag: Lag = (0.05, 0.27, -40.0, -12.0)
    h_lag: Lag = (0.05, 0.27, -40.0, -12.0)
    r_lag_ms: Parameter = 30.0
    n_speed: Parameter = 0.1
    h_speed: Parameter = 0.05
    r_speed: Parameter = 1.0
    ca_half: Parameter = 10.0
    ca_speed: Parameter = 1e-4
    ca_pump: Parameter = 15.0

    variables: ClassVar[tuple[str, ...]] = ("v_mv", "n", "h", "r", "calcium")

    def fast(self, state: CellState) -> tuple[Flow, Flow]:
        """Conductances of sodium and potassium, which make a spike."""
        v, n, h = state[..., 0, :], state[..., 1, :], state[..., 2, :]
        m = share_open(self.m, v)
        return self.g_na * m * m * m * h, self.g_k * n.square().square()

    def rates(self, state: CellState, flow: Flow) -> CellState:
        """Change of each variable, per ms."""
        v, n, h, r, calcium = state.unbind(-2)
        na, k = self.fast(state)
        a = share_open(self.a, v)
        inward = (self.g_t * a * a * a * r + self.g_ca * share_open(self.s, v).square()) * (v - self.e_ca)
        k = k + self.g_ahp * calcium / (calcium + self.ca_half)
        membrane = flow - self.g_leak * (v - self.e_leak) - na * (v - self.e_na) - k * (v - self.e_k) - inward
        rates = [
            membrane,
            self.n_speed * (share_open(self.n, v) - n) / lag_ms(self.n_lag, v),
            self.h_speed * (share_open(self.h, v) - h) / lag_ms(self.h_lag, v),
            self.r_speed * (share_open(self.r, v) - r) / self.r_lag_ms,
            self.ca_speed * (-inward - self.ca_pump * calcium),
        ]
        return torch.stack(rates, -2)

    def decay(self, state: CellState) -> Flow:
        """Decay of the voltage by leak, sodium and potassium, per ms: all that is stiff."""
        na, k = self.fast(state)
        return na + k + self.g_leak

    def settled(self, v: Flow, calcium: float = 0.1) -> CellState:
        """The state in which every gate has come to rest at a voltage, with the deposited model's first calcium."""
        return torch.stack(
            [v, share_open(self.n, v), share_open(self.h, v), share_open(self.r, v), torch.full_like(v, calcium)], -2
        )
