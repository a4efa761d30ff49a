"""Published behaviour of two cortical columns, and what the simulators here do: a page of plots and tables.

Each part plays a circuit with its published parameters and holds what it does against the paper's
statement, with a tolerance that stands beside it. Where a paper gives no number that can be read
off, the number is one of its equations, solved or integrated apart, and marked so; "recalled"
marks one that was not read in the paper itself. Lengths of runs stand on the page.
Everything here is simulated.

Run: python examples/published_cortex.py        (writes published_cortex.html, about a minute)
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import welch
from torch import Tensor

from stimopt.picture import WIDTH_IN, paint
from stimopt.published import Row, crossings, held, near, publish, section, traces
from stimopt.report import Section
from stimopt.simulators import Dynamics, JansenRit, euler, simulate, white_waves
from stimopt.simulators.wendling import Wendling
from stimopt.tensors import generator

PAGE = Path("published_cortex.html")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def play(circuit: Dynamics, start: Tensor, reading: Callable[[Tensor], Tensor], **arguments: Any) -> Tensor:
    with torch.no_grad():
        return simulate(circuit, start, reading=reading, **arguments).readings


# Jansen-Rit ------------------------------------------------------------------------------------------


def equilibria(potential_mv: Tensor) -> tuple[JansenRit, Tensor]:
    """One region for each potential, with the drive that makes it an equilibrium, and largest growth rate there."""
    fire = 5.0 * torch.sigmoid(0.56 * (potential_mv - 6.0))
    y0 = 3.25 / 100 * fire
    y2 = 22.0 / 50 * 0.25 * 135 * 5.0 * torch.sigmoid(0.56 * (0.25 * 135 * y0 - 6.0))
    afferents = 100 / 3.25 * (potential_mv + y2) - 0.8 * 135 * 5.0 * torch.sigmoid(0.56 * (135 * y0 - 6.0))
    still = torch.zeros_like(y0)
    circuit = JansenRit(afferents)
    state = torch.stack([y0, potential_mv + y2, y2, still, still, still], -1)
    silent = state.new_zeros(len(y0), 2)
    columns = [torch.func.jvp(lambda s: circuit.drift(s, silent), (state,), (torch.zeros_like(state) + unit,))[1]
               for unit in torch.eye(6, dtype=state.dtype)]  # fmt: skip
    values = torch.linalg.eigvals(torch.stack(columns, -1))
    turning = torch.where(values.imag.abs() > 1e-3, values.real, -torch.inf).amax(-1)
    return circuit, torch.stack([turning.clamp_min(-1e3), values.real.amax(-1)])


def bifurcation_points(circuit: JansenRit, turning: Tensor) -> list[Row]:
    p, hopf = circuit.afferents_hz, crossings(turning, circuit.afferents_hz)
    paper = {-12.15: "Hopf point at low drive", 89.83: "Hopf point, alpha begins", 315.70: "Hopf point, alpha ends"}
    rows = [
        near(name + ", p in 1/s", f"{at:g}, recalled", min(hopf, key=lambda found, at=at: abs(found - at)), at, 0.01, 3)
        for at, name in paper.items()
    ]
    middle = len(p) // 2
    rows.append(
        near(
            "saddle-node, spikes begin",
            "113.58, recalled; 113.586 of the equations",
            float(p[:middle].max()),
            113.586,
            0.01,
            3,
        )
    )
    rows.append(near("saddle-node at low drive", "\u221241.301, of the equations", float(p[middle // 2 :].min()),
                     -41.301, 0.01, 3))  # fmt: skip
    return rows


def cycles(low_hz: float, goals_hz: Tensor, hold_s: float) -> Tensor:
    """Lowest and highest potential of the cycle at `low_hz`, carried to each drive in 2 s and held; [2, drive]."""
    dt_s, climb, last = 2e-3, 1000, 500
    below, circuit = JansenRit(torch.full_like(goals_hz, low_hz)), JansenRit(goals_hz)
    drive = torch.zeros(climb, 3, len(goals_hz), 2, dtype=torch.float64)
    at = (torch.arange(climb, dtype=torch.float64).unsqueeze(-1) + numbers(0.0, 0.5, 1.0)) / climb
    drive[..., 0] = at.unsqueeze(-1) * (goals_hz - low_hz)
    with torch.no_grad():
        state = simulate(below, below.rest, dt_s=dt_s, steps=1000, every=1000).end
        state = simulate(below, state, dt_s=dt_s, drive=drive, every=climb).end
        state = simulate(circuit, state, dt_s=dt_s, steps=round(hold_s / dt_s), every=10**9).end
    potential = play(circuit, state, circuit.potential_mv, dt_s=dt_s, steps=last)
    return torch.stack([potential.amin(-1), potential.amax(-1)])


def connectivity_sweep(rows: int = 16, seconds: int = 5) -> tuple[list[int], np.ndarray]:
    """Potential for the six C of the paper's figure 3, [row, C, time] by 1 ms; p even in 120 to 320 for each step."""
    connectivity = [68, 128, 135, 270, 675, 1350]
    circuit = JansenRit(torch.full((6,), 120.0, dtype=torch.float64), connectivity=numbers(*connectivity))
    drive = torch.zeros(1000 * (seconds + 1), 1, rows, 6, 2, dtype=torch.float64)
    drive[..., 0] = 200 * torch.rand(drive.shape[:-1], dtype=torch.float64, generator=generator(1))
    potential = play(circuit, circuit.rest.expand(rows, 6, 6), circuit.potential_mv, dt_s=1e-3, scheme=euler,
                     drive=drive.expand(-1, 3, -1, -1, -1))  # fmt: skip
    return connectivity, potential[..., 1000:].numpy()


def jansen_rit(quick: bool) -> Section:
    potential_mv = torch.linspace(-2.0, 14.0, 4001, dtype=torch.float64)
    circuit, (turning, growth) = equilibria(potential_mv)
    rows = bifurcation_points(circuit, turning)
    if quick:
        return section("Jansen-Rit", "", rows, "")
    fold = cycles(120.0, numbers(137.2, 137.3, 137.35, 137.38, 137.4, 137.45, 137.5), 23.0)
    last = float(numbers(137.2, 137.3, 137.35, 137.38, 137.4, 137.45, 137.5)[(fold[1] - fold[0]) > 6].max())
    rows.append(
        held("fold of cycles: largest p tried that still spikes after 24 s", "137.38, recalled", last, 137.2, 137.4)
    )
    spikes_at, alpha_at = torch.linspace(114, 137.3, 40).double(), torch.linspace(90, 315.5, 90).double()
    branches = ((spikes_at, cycles(120.0, spikes_at, 3.0), "spikes"), (alpha_at, cycles(200.0, alpha_at, 3.0), "alpha"))
    connectivity, potential = connectivity_sweep()
    rows += sweep_rows(connectivity, potential)

    def diagram(drawing: Any) -> None:
        axes = drawing.subplots()
        for stable, style in ((growth < 0, "-"), (growth >= 0, ":")):
            axes.plot(circuit.afferents_hz, potential_mv.where(stable, torch.nan), "k" + style, linewidth=1.2)
        for number, (at, edges, name) in enumerate(branches):
            axes.fill_between(at, *edges, color=f"C{number}", alpha=0.35, label=f"{name}: range of the cycle")
        for published in (-12.15, 89.83, 113.58, 137.38, 315.70):
            axes.axvline(published, color="0.5", linewidth=0.6, linestyle="--")
        axes.set(xlim=(-60, 360), xlabel="drive p, 1/s", ylabel="potential, mV")
        axes.legend(loc="upper left")

    figures = [
        paint((WIDTH_IN, 3.2), diagram, "Equilibria (solid: stable, dotted: unstable) and stable cycles of the column "
              "against its drive. Dashed: published bifurcations, as recalled.", "An S-shaped curve with two "
              "shaded bands."),
        traces([f"C = {c}" for c in connectivity], potential[0, :, :3000], 1e-3, "Potential in mV for six connectivity "
               "constants, as in figure 3 of Jansen and Rit 1995; each to its own scale."),
    ]  # fmt: skip
    return section(
        "Jansen-Rit: where alpha and spikes begin and end",
        "Eigenvalues along the equilibria, cycles followed from one drive to the next, and the paper's sweep of the "
        "connectivity constant.", rows,
        "Jansen and Rit 1995, Biol Cybern 73:357; Grimbert and Faugeras 2006, Neural Comput 18:3052. Cycles by RK4 at "
        "2 ms: 2 s of ramp, 3 s of rest; at the fold 24 s at 137.2, 137.3, 137.35, 137.38, 137.4 and beyond, so "
        "" "it is bracketed between the last that spikes and the next, not found to 0.01. Sweep: p drawn evenly "
        "from 120 to 320 for every Euler step "
        "of 1 ms, 16 runs of 5 s; RK4 gives 10.75 Hz at C = 135.", figures,
    )  # fmt: skip


def sweep_rows(connectivity: list[int], potential: np.ndarray) -> list[Row]:
    hz, power = welch(potential, 1000, nperseg=4000)
    power, hz = power.mean(0)[:, hz >= 1], hz[hz >= 1]
    peak = dict(zip(connectivity, hz[power.argmax(-1)], strict=True))
    alpha = dict(zip(connectivity, power[:, (hz >= 8) & (hz <= 12)].sum(-1) / power.sum(-1), strict=True))
    return [
        *(held(f"share of 8 to 12 Hz at C = {c}", "noise", alpha[c], -np.inf, 0.3) for c in (68, 1350)),
        *(near(f"peak at C = {c}, Hz", "about 10", peak[c], 10, 0.5) for c in (128, 135)),
        near("peak at C = 270, Hz", "spikes; 5.1 by an independent run", peak[270], 5.1, 0.25),
        near("peak at C = 675, Hz", "slower spikes; 2.7 by the same", peak[675], 2.7, 0.25),
    ]


# Wendling --------------------------------------------------------------------------------------------


TYPES = {"1 background": (5, 50, 15), "2 sporadic spikes": (5, 40, 15), "3 sustained spikes": (5, 25, 15),
         "4 slow rhythm": (5, 10, 15), "5 low-voltage fast": (5, 5, 25), "6 quasi-sinusoid": (5, 15, 0)}  # fmt: skip


def wendling(rows: int, seconds: int) -> Section:
    """The authors' scheme and step: Euler, 512 a second."""
    A, B, G = numbers(*[gain for gains in TYPES.values() for gain in gains]).reshape(-1, 3).T
    circuit = Wendling(torch.full((6,), 90.0, dtype=torch.float64), excitation_mv=A, slow_inhibition_mv=B,
                       fast_inhibition_mv=G)  # fmt: skip
    waves = white_waves(circuit, (rows,), 512 * (seconds + 1), 1 / 512, generator(1))
    potential = play(circuit, circuit.rest.expand(rows, 6, 10), circuit.potential_mv, dt_s=1 / 512, steps=len(waves),
                     waves=waves, scheme=euler)[..., 512:].numpy()  # fmt: skip
    hz, power = welch(potential, 512, nperseg=2048)
    power, hz = power.mean(0)[:, hz >= 1], hz[hz >= 1]
    peak, share = hz[power.argmax(-1)], power / power.sum(-1, keepdims=True)
    sd = potential.std(-1).mean(0)
    above = potential > np.median(potential, -1, keepdims=True) + 8.0
    spikes = (~above[..., :-1] & above[..., 1:]).sum((0, 2)) / (rows * seconds)
    found = [
        held("1: standard deviation, mV", "background", sd[0], -np.inf, 0.5),
        held("1: spikes per s", "none", spikes[0], 0, 0),
        held("2: spikes per s", "sporadic; 0.48 by an independent run", spikes[1], 0.35, 0.8),
        near("3: spikes per s", "sustained; 4.46 by the same", spikes[2], 4.5, 0.3),
        held("4: peak, Hz", "alpha-like rhythm; 10.5 by the same", peak[3], 9, 12),
        held("4: spikes per s", "none", spikes[3], 0, 0),
        held("5: standard deviation, mV", "the least of all six", sd[4], 0, sd[[0, 1, 2, 3, 5]].min()),
        held("5: share of 13 to 30 Hz", "fast", share[4, (hz >= 13) & (hz < 30)].sum(), 0.4, np.inf),
        near("6: peak, Hz", "quasi-sinusoid; 9.5 by the same", peak[5], 9.5, 0.25),
        held("6: share of 8 to 13 Hz", "one rhythm", share[5, (hz >= 8) & (hz < 13)].sum(), 0.95, np.inf),
    ]
    figures = () if rows < 32 else (
        traces([f"{name} (A, B, G = {', '.join(map(str, gains))} mV)" for name, gains in TYPES.items()],
               potential[0], 1 / 512, "Potential in mV, each to its own scale."),)  # fmt: skip
    return section(
        "Wendling: six types of activity",
        "Three synaptic gains decide what a hippocampal column shows: A of excitation, B of slow and G of fast "
        "inhibition.", found,
        f"Wendling et al. 2002, Eur J Neurosci 15:1499, figure 4. Euler at 1/512 s with one draw of p a step, as the "
        f"authors; {rows} runs of {seconds} s. Without Euler's error type 6 beats at 11.0 Hz.", figures,
    )  # fmt: skip


def parts(quick: bool) -> Iterator[Section]:
    yield jansen_rit(quick)
    yield wendling(16, 4) if quick else wendling(32, 5)


def main(quick: bool = False, page: Path | None = PAGE) -> None:
    publish(parts(quick), None if quick else page, "1, 2 and 0, as in the script")


if __name__ == "__main__":
    main()
