"""Basal ganglia and thalamus as spiking cells: ten each of subthalamic, outer and inner pallidal, thalamic.

Thalamic cells relay sensorimotor pulses to the cortex while the inner pallidum inhibits them. In
the parkinsonian state the pallidum fires in bursts and the relay fails; fast stimulation of the
subthalamic cells makes pallidal firing regular and the relay works again, slow stimulation does not
(see `error_index`). A region is one whole network, so a drive reaches all ten cells of a nucleus.

A spike of a subthalamic or inner pallidal cell starts an alpha-shaped conductance of fixed size.
The published program adds a kick when a voltage was below -10 mV at one step and is above at the
next, which is no equation in time. Here the step before becomes a lag: `below` follows, 0.05 ms
late, whether the voltage is below -10 mV, and the kick comes at the rate G * below * above / lag. Whatever
the shape of the spike, its integral is G, as long as the spike is wide against the lag and crosses
the narrow gate fast against it; with a lag of one step, Euler's scheme gives the published rule.

Spikes rise by up to 3000 mV/ms, so `euler` needs 0.01 ms, as published; `exponential_euler(circuit.decay_per_s)`
does at 0.05 ms. Differentiable as every circuit, but a spike's time can hang on anything that
went before: gradients over many spikes are large and of little use.

State   [*batch, region, 260]  26 variables by 10 cells, see `states`
Drive   [*batch, region, 4]    current into subthalamic, thalamic, outer and inner pallidal cells, uA/cm2
Emits   [*batch, region, 3]    mean activation of the synapses that STN, GPe and GPi make
Output  [*batch, region]       mean potential of the subthalamic cells, mV

Reference: So, Kent and Grill, J Comput Neurosci 32 (2012) 499-519, after Rubin and Terman, J Comput
Neurosci 16 (2004) 211-235. Defaults are those of the authors' deposited model, ModelDB 141699.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.tensors import row_keys, row_noise

from .basal_ganglia_currents import Flow, Gate, PallidalCell, SubthalamicCell, ThalamicCell, share_open
from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State

CELLS = 10
MS_PER_S = 1e3
REST_MV = -62.0  # ModelDB 141699: first voltages are drawn around it
SCATTER_MV = 5.0  # with this standard deviation
GPE_SCATTER = 2.0  # uA/cm2; ModelDB 141699: standard deviation over cells of the current applied to GPe

_TH, _STN, _GP = ThalamicCell.variables, SubthalamicCell.variables, PallidalCell.variables
_VARIABLES = (
    *(f"th_{name}" for name in _TH),
    *(f"stn_{name}" for name in _STN),
    *(f"{nucleus}_{name}" for name in _GP for nucleus in ("gpe", "gpi")),
    *("stn_below", "gpi_below", "stn_kick", "gpi_kick", "stn_synapse", "gpi_synapse", "gpe_synapse"),
)
_SIZES = (len(_TH), len(_STN), 2 * len(_GP), 2, 2, 2, 1)


@dataclass(frozen=True)
class BasalGanglia(Dynamics):
    """A basal-ganglia-thalamic network in each region. Applied currents in uA/cm2, conductances in mS/cm2.

    Attributes:
        parkinsonian: 0 healthy, 1 parkinsonian; the applied currents fall with it.
        stn_applied: Current applied to STN cells, healthy.
        stn_loss: How much less in the parkinsonian state; so too for GPe and GPi.
        gpe_scatter: Each GPe cell's own current on top, a number or a tensor that broadcasts against
            [*batch, region, 10]; see `scattered_cells`. Without it the ring's cells do the same as one.
        g_gpe_stn: Largest conductance of all synapses from GPe on an STN cell, of which two share it; so too below.
        g_gpi_th: That of the one GPi cell on a thalamic cell: 0.08, with a factor 1.4 of the deposited model.
        e_inhibition: Reversal potential of synapses from GPe and GPi, mV.
        e_excitation: That of synapses from STN.
        stn_peak: Peak of the alpha-shaped activation after an STN spike; so too for GPi.
        alpha_ms: When it peaks.
        release: Voltage of the cell above which a spike is told, as a narrow gate.
        release_lag_ms: How late `below` follows; no step may be longer.
        gpe_rise_per_ms: Rate at which GPe synapses open while `gpe_release` is open.
        gpe_fall_per_ms: Rate at which they close.
        gpe_release: When they open: a gate of the GPe cell's voltage.
        thalamus: The thalamic cells.
        stn: The subthalamic cells.
        pallidum: The pallidal cells, those of GPe first: its parameters broadcast against [*batch, region, 20].
    """

    parkinsonian: Float[Tensor, "*batch region"]
    stn_applied: Parameter = 33.0
    stn_loss: Parameter = 10.0
    gpe_applied: Parameter = 21.0
    gpe_loss: Parameter = 13.0
    gpi_applied: Parameter = 22.0
    gpi_loss: Parameter = 6.0
    gpe_scatter: Parameter = 0.0
    g_gpe_stn: Parameter = 1.0
    g_stn_gpe: Parameter = 0.3
    g_gpe_gpe: Parameter = 1.0
    g_stn_gpi: Parameter = 0.3
    g_gpe_gpi: Parameter = 1.0
    g_gpi_th: Parameter = 1.4 * 0.08
    e_inhibition: Parameter = -85.0
    e_excitation: Parameter = 0.0
    stn_peak: Parameter = 0.43
    gpi_peak: Parameter = 0.3
    alpha_ms: Parameter = 5.0
    release: Gate = (-10.0, 0.2)  # -10 mV: ModelDB 141699; the width is chosen, see the tests
    release_lag_ms: Parameter = 0.05
    gpe_rise_per_ms: Parameter = 2.0
    gpe_fall_per_ms: Parameter = 0.04
    gpe_release: Gate = (-37.0, 2.0)
    thalamus: ThalamicCell = field(default_factory=ThalamicCell)
    stn: SubthalamicCell = field(default_factory=SubthalamicCell)
    pallidum: PallidalCell = field(default_factory=PallidalCell)

    states: ClassVar[tuple[str, ...]] = tuple(f"{name}_{cell}" for name in _VARIABLES for cell in range(CELLS))
    inputs: ClassVar[tuple[str, ...]] = ("stn_ua_cm2", "cortex_ua_cm2", "gpe_ua_cm2", "gpi_ua_cm2")
    outputs: ClassVar[tuple[str, ...]] = ("stn_synapse", "gpe_synapse", "gpi_synapse")
    source: ClassVar[str] = "So, Kent and Grill 2012, J Comput Neurosci 32:499-519; ModelDB 141699"
    noise_convention: ClassVar[str] = "no noise; seeds differ in first voltages, GPe currents and cortical pulses"
    tested_schemes: ClassVar[tuple[str, ...]] = ("ExponentialEuler",)
    # exponential Euler at this step: firing rates of all nuclei 4 % below those at 0.01 ms at most, the error index the
    # same within its spread over seeds (see the tests); rk4 stays finite; euler is for 0.01 ms, as published
    largest_dt_s: ClassVar[float] = 5e-5

    @property
    def rest(self) -> State:
        """All cells at -62 mV with their gates settled, synapses closed."""
        return self.settled(self.parkinsonian.new_full((*self.parkinsonian.shape, 4, CELLS), REST_MV))

    def settled(self, v_mv: Float[Tensor, "*batch region 4 cell"]) -> State:
        """The state with gates settled at voltages of thalamus, STN, GPe and GPi, synapses closed."""
        pallidal = self.pallidum.settled(v_mv[..., 2:, :].flatten(-2)).unflatten(-1, (2, CELLS)).flatten(-3, -2)
        cells = [self.thalamus.settled(v_mv[..., 0, :]), self.stn.settled(v_mv[..., 1, :]), pallidal]
        below = 1 - share_open(self.release, v_mv[..., 1::2, :])
        return torch.cat([*cells, below, torch.zeros_like(v_mv), torch.zeros_like(v_mv[..., :1, :])], -2).flatten(-2)

    def drift(self, state: State, drive: Drive) -> State:
        """The deposited model's equations, with spikes told by `below`."""
        th, stn, gp, below, kick, alpha, gpe = self._parts(state)
        to_stn, to_th, to_gpe, to_gpi = (column.unsqueeze(-1) for column in drive.unbind(-1))
        stn_open, gpi_open = alpha.unbind(-2)
        gpe_flow, gpi_flow = self._pallidal_flows(stn_open, gpe, gp[..., 0, :])
        thalamic = self.thalamus.rates(th, self._inhibition(self.g_gpi_th, gpi_open, th[..., 0, :]) + to_th)
        subthalamic = self.stn.rates(stn, self._stn_flow(gpe, stn[..., 0, :]) + to_stn)
        pallidal = self.pallidum.rates(gp, torch.cat([gpe_flow + to_gpe, gpi_flow + to_gpi], -1))
        pallidal = pallidal.unflatten(-1, (2, CELLS)).flatten(-3, -2)
        firing = torch.stack([stn[..., 0, :], gp[..., 0, CELLS:]], -2)
        synaptic = self._alpha_rates(firing, below, kick, alpha)
        gpe_opening = _wide(self.gpe_rise_per_ms) * (1 - gpe) * share_open(self.gpe_release, gp[..., 0, :CELLS])
        gpe_rate = (gpe_opening - _wide(self.gpe_fall_per_ms) * gpe).unsqueeze(-2)
        return MS_PER_S * torch.cat([thalamic, subthalamic, pallidal, synaptic, gpe_rate], -2).flatten(-2)

    def _parts(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Cells of three kinds; below, kick and activation of STN and GPi synapses; activation of GPe synapses."""
        th, stn, gp, below, kick, alpha, gpe = state.unflatten(-1, (len(_VARIABLES), CELLS)).split(_SIZES, -2)
        return th, stn, gp.unflatten(-2, (-1, 2)).flatten(-2), below, kick, alpha, gpe.squeeze(-2)

    def _alpha_rates(self, v: Flow, below: Flow, kick: Flow, alpha: Flow) -> Tensor:
        """Change per ms of below, kick and activation of STN and GPi synapses; a kick of e / tau peaks at 1."""
        above, lag, tau = share_open(self.release, v), _wide(_wide(self.release_lag_ms)), _wide(_wide(self.alpha_ms))
        spiking = (math.e / tau) * below * above / lag
        peaks = torch.stack([_wide(self.stn_peak) * spiking[..., 0, :], _wide(self.gpi_peak) * spiking[..., 1, :]], -2)
        return torch.cat([(1 - above - below) / lag, peaks - (2 * kick + alpha / tau) / tau, kick], -2)

    def _inhibition(self, conductance: Parameter, activation: Flow, v: Flow) -> Flow:
        return _wide(conductance) * activation * (_wide(self.e_inhibition) - v)

    def _excitation(self, conductance: Parameter, activation: Flow, v: Flow) -> Flow:
        return _wide(conductance) * activation * (_wide(self.e_excitation) - v)

    def _applied(self, healthy: Parameter, loss: Parameter) -> Tensor:
        return (healthy - loss * self.parkinsonian).unsqueeze(-1)

    def _stn_flow(self, gpe: Flow, v: Flow) -> Flow:
        """Applied current and inhibition by two GPe cells, the opposite one and the next."""
        both = 0.5 * (gpe + gpe.roll(-1, -1))
        return self._applied(self.stn_applied, self.stn_loss) + self._inhibition(self.g_gpe_stn, both, v)

    def _pallidal_flows(self, stn: Flow, gpe: Flow, v: Tensor) -> tuple[Flow, Flow]:
        """Applied current, two STN cells' excitation and two GPe cells' inhibition, in GPe and in GPi cells.

        STN reaches the opposite cell and the next; GPe the previous one and the next but one.
        """
        excited = 0.5 * (stn + stn.roll(1, -1))
        inhibited = 0.5 * (gpe.roll(-1, -1) + gpe.roll(2, -1))
        v_gpe, v_gpi = v[..., :CELLS], v[..., CELLS:]
        to_gpe = self._excitation(self.g_stn_gpe, excited, v_gpe) + self._inhibition(self.g_gpe_gpe, inhibited, v_gpe)
        to_gpi = self._excitation(self.g_stn_gpi, excited, v_gpi) + self._inhibition(self.g_gpe_gpi, inhibited, v_gpi)
        gpe_applied = self._applied(self.gpe_applied, self.gpe_loss) + self.gpe_scatter
        return to_gpe + gpe_applied, to_gpi + self._applied(self.gpi_applied, self.gpi_loss)

    def emission(self, state: State) -> Emission:
        """Mean activation of the synapses from STN, GPe and GPi."""
        _, _, _, _, _, alpha, gpe = self._parts(state)
        stn, gpi = alpha.unbind(-2)
        return torch.stack([stn, gpe, gpi], -2).mean(-1)

    def potential_mv(self, state: State) -> Potential:
        """Mean potential of the subthalamic cells, where the electrode is."""
        return self._parts(state)[1][..., 0, :].mean(-1)

    def voltages_mv(self, state: State) -> Float[Tensor, "*batch region 4 cell"]:
        """Potentials of thalamic, subthalamic, outer and inner pallidal cells."""
        th, stn, gp, *_ = self._parts(state)
        return torch.stack([th[..., 0, :], stn[..., 0, :], gp[..., 0, :CELLS], gp[..., 0, CELLS:]], -2)

    def decay_per_s(self, state: State) -> State:
        """Decay of the voltages by sodium, potassium and leak, for `exponential_euler`; all other states are slow."""
        th, stn, gp, *_ = self._parts(state)
        thalamic, subthalamic, pallidal = self.thalamus.decay(th), self.stn.decay(stn), self.pallidum.decay(gp)
        pallidal = pallidal.unflatten(-1, (2, CELLS))
        others = (len(_TH) - 1, len(_STN) - 1, len(_VARIABLES) - len(_TH) - len(_STN) - 2)
        slow = [thalamic.new_zeros(*thalamic.shape[:-1], rows, CELLS) for rows in others]
        fast = (thalamic.unsqueeze(-2), subthalamic.unsqueeze(-2), pallidal)
        rows = [part for pair in zip(fast, slow, strict=True) for part in pair]
        return MS_PER_S * torch.cat(rows, -2).flatten(-2)


def scattered_cells(circuit: BasalGanglia, source: torch.Generator) -> tuple[BasalGanglia, State]:
    """Cells that differ, and first voltages that differ, as the deposited model draws them, for every row of a batch.

    Returns:
        The circuit with a `gpe_scatter` of its own per cell, and a state to start from.
    """
    like = circuit.parkinsonian
    drawn = row_noise(row_keys(like.shape, source), (5, CELLS), 0, like)  # a row's own, in any batch
    own = replace(circuit, gpe_scatter=GPE_SCATTER * drawn[..., 4, :])
    return own, own.settled(REST_MV + SCATTER_MV * drawn[..., :4, :])


def _wide(parameter: Parameter) -> Parameter:
    """A parameter [*batch, region], for every cell."""
    return parameter.unsqueeze(-1) if isinstance(parameter, Tensor) else parameter
