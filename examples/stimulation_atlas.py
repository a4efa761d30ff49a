"""A stimulation-response atlas of one virtual patient: pulse at every site, read everywhere.

Shows single pulses at every neighbouring pair of contacts, many at once in one batch, the
evoked response of every channel as a map of site against channel, and how it grows with
current at the site that reaches farthest. Responses are averages over repetitions of what
differs from silence with the same noise, which only a simulation can give: every number
here is simulated.

Run: python examples/stimulation_atlas.py        (writes stimulation_atlas.png)
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stimopt.picture import paint, save_picture
from stimopt.simulators import Twin, jansen_rit_patient
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator

PICTURE = Path("stimulation_atlas.png")
ONSET_S = 0.02


def evoked_uv(patient: Twin, sites: list[str], amplitudes_ma: list[float], repetitions: int) -> Tensor:
    """Mean difference to silence, [site, channel, time]: the same noise, with and without one pulse."""
    state = patient.start((repetitions,), generator(1, "atlas"))
    silence = no_stimulus(patient.montage, (repetitions,))
    with torch.no_grad():
        quiet = patient.respond(state, silence, generator(1, "window"))[0].signal_uv
        rows = []
        for site, amplitude_ma in zip(sites, amplitudes_ma, strict=True):
            pulse = pulse_train(patient.montage, site, amplitude_ma=amplitude_ma, pulses=1, onset_s=ONSET_S)
            pulses = concatenate([pulse.reshape(1)] * repetitions)
            driven = patient.respond(state, pulses, generator(1, "window"))[0].signal_uv
            rows.append((driven - quiet).mean(0))
    return torch.stack(rows)


def draw(axes: Any, peak_uv: Tensor, sites: list[str], channels: list[str]) -> Any:
    """The map: one row a site, one column a channel."""
    picture = axes.imshow(peak_uv.numpy(), aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(channels)), channels, rotation=90)
    axes.set_yticks(range(len(sites)), sites)
    axes.set_xlabel("channel")
    axes.set_ylabel("stimulated pair")
    axes.set_title("Largest evoked potential, uV")
    return picture


def main(quick: bool = False, picture: Path | None = PICTURE) -> None:
    patient = jansen_rit_patient(patient=7, window_s=0.2 if quick else 0.4)
    sites = list(patient.montage.neighbour_pairs())[: 3 if quick else None]
    channels = [channel.name for channel in patient.montage.channels]
    evoked = evoked_uv(patient, sites, [4.0] * len(sites), 2 if quick else 8)
    peak_uv = evoked.abs().amax(-1)
    strongest = int(peak_uv.sum(-1).argmax())
    print(f"simulated patient 7: {len(sites)} sites, {len(channels)} channels, one pulse of 4 mA for 200 us")
    for site, row in zip(sites, peak_uv, strict=True):
        at = int(row.argmax())
        print(f"  {site:<10} largest at {channels[at]:<4} {float(row[at]):7.1f} uV, reaches {int((row > 20).sum())} "
              "channels above 20 uV")  # fmt: skip

    amplitudes_ma = [0.5, 1.0, 2.0, 4.0, 6.0, 8.0]
    dose = evoked_uv(patient, [sites[strongest]] * 6, amplitudes_ma, 2 if quick else 8).abs().amax(-1)
    print(f"dose at {sites[strongest]}:", ", ".join(
        f"{amplitude_ma:g} mA {float(row.max()):.0f} uV" for amplitude_ma, row in zip(amplitudes_ma, dose, strict=True)
    ))  # fmt: skip

    def strokes(drawing: Any) -> None:
        left, right = drawing.subplots(1, 2, width_ratios=(2, 1))
        drawing.colorbar(draw(left, peak_uv, sites, channels), ax=left)
        for column in dose.T:
            right.plot(amplitudes_ma, column.numpy(), color="0.6", linewidth=0.8)
        right.plot(amplitudes_ma, dose.amax(-1).numpy(), marker="o", color="C0")
        right.set_xlabel("current, mA")
        right.set_ylabel("evoked potential, uV")
        right.set_title(f"Dose at {sites[strongest]}")

    if picture is not None and not quick:
        atlas = paint((9.0, 4.0), strokes, "Stimulation-response atlas of a simulated patient.", "A map and curves.")
        save_picture(atlas, picture)
        print(f"the atlas: {picture}")


if __name__ == "__main__":
    main()
