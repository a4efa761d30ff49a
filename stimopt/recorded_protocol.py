"""The protocol on a person's recording: leave one stimulation site out, forecast its mean response.

Contenders are made of the trials of all other sites. What is judged is the mean response of
the held-out site in the samples after the artefact, as it rises above the signal before the pulses, on
channels that read neither a stimulated contact nor the one beside it, where slow decays are partly
artefact. Channels count alike: each is divided by its size over all sites and times.

    r2       1 - sum (mean - forecast)^2 / sum (mean - before)^2; 0 for a forecast of no change
    ceiling  sum (half - before) (other half - before) / sum (mean - before)^2, over random halves of the trials:
             the part of the mean that a second recording would show again

Few sites of one person: the interval over sites says how little that is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .contenders import Contender, fitted
from .datasets import locate
from .errors import DataError, StimoptError
from .fitting import read_trials, space_of_trials, without_artefact
from .forecaster import Forecaster, Trials
from .statistics import bootstrap_interval, paired_difference
from .tensors import generator

CCEP = "ccep-seeg-bids"
BEFORE_S, AFTER_S = 1.0, 0.5
FROM_S, TO_S = 0.05, 0.4  # the data set's: its artefact is smeared to 50 ms, and single pulses are answered by 400 ms
RECORDED_BASELINES = (
    "no-effect", "other-sites", "nearest", "distance-decay", "mean-evoked", "arx", "gaussian-process",
)  # fmt: skip
_HALVES = 100


@dataclass(frozen=True)
class SiteTable:
    """How contenders forecast sites that they never saw.

    Attributes:
        rows: One a contender and site: "model", "site", "r2", "ceiling", "share" (r2 over ceiling).
        refused: What could not be made, and why.
    """

    rows: pd.DataFrame
    refused: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Median over sites of r2 with its 95 % interval, and the ceiling's median."""
        found = []
        for model, part in _models(self.rows):
            middle = bootstrap_interval(part.r2.to_numpy())
            found.append({"model": model, "sites": len(part), "r2": middle.estimate, "r2_low": middle.low,
                          "r2_high": middle.high, "ceiling": float(part.ceiling.median())})  # fmt: skip
        return pd.DataFrame(found)

    def differences(self, model: str) -> pd.DataFrame:
        """How much higher r2 is than each other contender's, paired over sites; `ahead`: the interval lies above 0."""
        own, found = self.rows[self.rows.model == model].set_index("site").r2, []
        for other, part in _models(self.rows[self.rows.model != model]):
            theirs = part.set_index("site").r2
            both = own.index.intersection(theirs.index)
            if len(both):
                gap = paired_difference(own[both].to_numpy(), theirs[both].to_numpy())
                found.append({"against": other, "difference": gap.estimate, "low": gap.low, "high": gap.high,
                              "ahead": gap.low > 0})  # fmt: skip
        return pd.DataFrame(found)

    def text(self) -> str:
        """To read: every model, then what was refused."""
        lines = [
            "One recorded person; unseen stimulation sites, mean response.",
            self.summary().round(3).to_string(index=False),
        ]
        lines += [f"{row.model}, {row.site}: not made: {row.reason}" for row in self.refused.itertuples()]
        return "\n".join(lines)


def ccep_trials(folder: Path | None = None) -> Trials:
    """Single-pulse trials of the recording, bipolar, each about its own level before the pulse, the artefact bridged.

    The level wanders by more than the responses over the recording, and a forecast may know it from the context.

    Args:
        folder: Of the data set; None looks below STIMOPT_DATA and in the cache.

    Raises:
        DataError: If it is not at hand, or not whole.
    """
    trials = read_trials(folder or locate(CCEP), BEFORE_S, AFTER_S)
    level_uv = trials.context.signal_uv.mean(-1, keepdim=True)
    context = replace(trials.context, signal_uv=trials.context.signal_uv - level_uv)
    response = replace(trials.response, signal_uv=trials.response.signal_uv - level_uv)
    return without_artefact(Trials(context, trials.stimulus, response), FROM_S)


def leave_sites_out(
    trials: Trials, contenders: Sequence[Contender], *, from_s: float = FROM_S, to_s: float = TO_S, seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SiteTable:  # fmt: skip
    """Hold every site out in turn.

    Args:
        trials: Recorded ones, artefacts bridged; several trials a site.
        contenders: Each gets all trials of the other sites, whatever its own `trials` say.
        from_s: First sample that is judged.
        to_s: The end of what is judged.
        seed: Of fits and halves.
        progress: Told how many of all sites are done.

    Raises:
        DataError: If there are fewer than three sites, or a site with fewer than two trials.
    """
    names, group = _sites(trials)
    rise = _judged(trials, from_s, to_s) - trials.context.signal_uv.double().mean(-1, keepdim=True)
    means = torch.stack([rise[group == site].mean(0) for site in range(len(names))])  # [site, channel, time]
    spread = means.square().mean((0, -1)).sqrt().clamp_min(1e-9).unsqueeze(-1)
    space, rows, refused = space_of_trials(trials.stimulus), [], []
    for site, name in enumerate(names):
        own = (group == site).nonzero().squeeze(-1)
        held, past, clean = trials[own], trials[_taking_turns(group, site)], _clean(trials[own])
        draws = (rise[own] / spread)[:, clean]
        size = draws.mean(0).square().sum()
        ceiling = float(_shared(draws, seed) / size)
        for one in contenders:
            try:
                forecaster = fitted(one, past, past.context, space, seed)
                error = _judged(held, from_s, to_s).mean(0) - _forecast(forecaster, held, from_s, to_s)
            except StimoptError as refusal:
                refused.append({"model": one.label, "site": name, "reason": str(refusal)})
                continue
            r2 = float(1 - (error / spread)[clean].square().sum() / size)
            rows.append({"model": one.label, "site": name, "r2": r2, "ceiling": ceiling, "share": r2 / ceiling})
        if progress:
            progress(site + 1, len(names))
    return SiteTable(pd.DataFrame(rows), pd.DataFrame(refused, columns=["model", "site", "reason"]))


def _models(rows: pd.DataFrame) -> Any:
    return rows.groupby("model", sort=False) if len(rows) else []


def _sites(trials: Trials) -> tuple[list[str], Int[Tensor, " trial"]]:
    """Sites by the contacts that carry current, and the site of each trial."""
    used, group = torch.unique(trials.stimulus.amplitude_ma != 0, dim=0, return_inverse=True)
    counts = torch.bincount(group)
    if len(used) < 3 or int(counts.min()) < 2:
        raise DataError(
            f"{len(used)} sites with {int(counts.min())} trials or more each; leaving a site out takes three sites of "
            "two trials at least."
        )
    contacts = trials.stimulus.montage.contacts
    return ["-".join(contacts[int(i)].name for i in row.nonzero()) for row in used], group


def _judged(trials: Trials, from_s: float, to_s: float) -> Float[Tensor, "trial channel time"]:
    return trials.response.between(from_s, to_s).signal_uv.double()


def _forecast(forecaster: Forecaster, trials: Trials, from_s: float, to_s: float) -> Float[Tensor, "channel time"]:
    with torch.no_grad():
        forecast = forecaster.forecast(trials.context, trials.stimulus)
    return forecast.template.between(from_s, to_s).signal_uv.double().mean(0)


def _clean(trials: Trials) -> Bool[Tensor, " channel"]:
    """Channels that read no stimulated contact and none beside one on its shaft."""
    contacts = trials.stimulus.montage.contacts
    loud = (trials.stimulus.amplitude_ma != 0).any(0).nonzero().squeeze(-1).tolist()
    near = [(i, j) for i in loud for j in (i - 1, i, i + 1) if 0 <= j < len(contacts)]
    used = {contacts[j].name for i, j in near if contacts[i].shaft == contacts[j].shaft}
    return torch.tensor([c.plus not in used and c.minus not in used for c in trials.response.montage.channels])


def _taking_turns(group: Int[Tensor, " trial"], without: int) -> Int[Tensor, " other"]:
    """All trials but one site's, sites in turns: a model that reads only the newest then still sees every site."""
    turn = torch.zeros_like(group)
    for site in range(int(group.max()) + 1):
        own = group == site
        turn[own] = torch.arange(int(own.sum()))
    order = (turn * len(group) + torch.arange(len(group))).argsort()
    return order[group[order] != without]


def _shared(draws: Float[Tensor, "trial channel time"], seed: int) -> Float[Tensor, ""]:
    """What two halves of the trials have in common: mean over random halves of the sum of their products."""
    source, half, total = generator(seed, "halves"), len(draws) // 2, draws.new_zeros(())
    for _ in range(_HALVES):
        order = torch.randperm(len(draws), generator=source)
        total = total + (draws[order[:half]].mean(0) * draws[order[half : 2 * half]].mean(0)).sum()
    return total / _HALVES
