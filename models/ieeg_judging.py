"""How well a foundation network forecasts patients whom it never learned from, and how far its doubt must be stretched.

Patients are judged at sites that the past trials did not hold where there are enough of them, with several numbers of
past trials, and each patient counts once. `temper` is one factor on every standard deviation, such that intervals
cover what they say on these patients; it is judged by halves, each with the factor that the other half chose.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import DataError
from stimopt.tensors import map_tensors

from .ieeg_answer import Answer
from .ieeg_batches import Batch, Draw, Patient, draw_batch
from .ieeg_transformer import IeegTransformer

PASTS = (0, 5, 20)
_PRIOR_TRIALS = 4  # that say the model's own temper is right
_SEED = 7  # of what is asked; the same for every network that is judged


def judged(network: IeegTransformer, patients: Sequence[Patient], past: int, asked: int = 12) -> dict[str, float]:
    """Medians over patients, at sites that the past trials did not hold where there are enough.

    Args:
        network: With the weights to judge, on any device.
        patients: Never learned from. Those with fewer than two trials beside the past ones are left out.
        past: Trials in context.
        asked: Contexts of each patient, at most.

    Returns:
        "r2" of windows, "effect_r2" of differences between a stimulus and none on the same noise where twins played
        both, "coverage_90" of 90 % intervals; empty where no patient has trials enough.
    """
    rows: dict[str, list[float]] = {}
    for number, patient in enumerate(patients):
        if (found := _answered(network, patient, past, asked, number)) is not None:
            for name, value in _scores(*found).items():
                rows.setdefault(name, []).append(value)
    return {name: float(torch.tensor(values).median()) for name, values in rows.items()}


def error_ratios(
    network: IeegTransformer, patients: Sequence[Patient], pasts: Sequence[int] = PASTS, asked: int = 12
) -> list[Float[Tensor, " sample"]]:
    """Absolute errors as shares of the standard deviation that was forecast, for each patient with trials enough.

    Raises:
        DataError: If no patient has enough.
    """
    ratios = []
    for number, patient in enumerate(patients):
        answers = [_answered(network, patient, past, asked, number) for past in pasts]
        found = [_ratios(*answer) for answer in answers if answer is not None]
        if found:
            ratios.append(torch.cat(found))
    if not ratios:
        raise DataError("no validation patient has two trials or more; give some that have.")
    return ratios


def fitted_temper(ratios: Sequence[Float[Tensor, " _"]], share: float = 0.9) -> float:
    """The factor on standard deviations with which central intervals cover this share of all samples.

    Args:
        ratios: See `error_ratios`.
        share: To be covered, between 0 and 1.
    """
    pooled = torch.cat(list(ratios))
    reached = pooled.kthvalue(max(1, math.ceil(share * len(pooled)))).values
    return float(reached) / _reach(share)


def patient_temper(ratios: Sequence[Float[Tensor, " _"]], trials: int) -> float:
    """The factor that a patient's own held-out trials ask for, drawn towards 1, the more the fewer there are.

    Args:
        ratios: Absolute errors as shares of the standard deviation that was forecast; 1 without any.
        trials: How many they are of.
    """
    if not ratios:
        return 1.0
    return float(fitted_temper(ratios) ** (trials / (trials + _PRIOR_TRIALS)))


def coverage_apart(ratios: Sequence[Float[Tensor, " _"]], share: float = 0.9) -> float:
    """How much intervals cover of each half of the patients with the temper that the other half chose.

    A single patient can only be judged with the temper that it chose itself.
    """
    if len(ratios) < 2:
        return _covered(ratios, fitted_temper(ratios, share), share)
    halves = ratios[::2], ratios[1::2]
    covered = [_covered(halves[i], fitted_temper(halves[1 - i], share), share) * len(halves[i]) for i in (0, 1)]
    return sum(covered) / len(ratios)


def _covered(ratios: Sequence[Tensor], temper: float, share: float) -> float:
    inside = [float((ratio <= temper * _reach(share)).float().mean()) for ratio in ratios]
    return sum(inside) / len(inside)


def _reach(share: float) -> float:
    """Standard deviations that a central interval of a Gaussian spans to each side."""
    return float(torch.special.ndtri(torch.tensor((1 + share) / 2, dtype=torch.float64)))


@torch.no_grad()
def _answered(
    network: IeegTransformer, patient: Patient, past: int, asked: int, number: int
) -> tuple[Answer, Batch] | None:
    """What the network says of a patient's windows; None where there are too few trials."""
    asked = min(asked, len(patient.site) - past)
    if asked < 2:
        return None
    draw = Draw(1, asked, (past,), 64, (8, 8), 0.0, 0.0, 0.0, 1.0)
    device = next(network.parameters()).device
    batch = map_tensors(draw_batch([patient], draw, _SEED, number), lambda x: x.to(device))
    return network(batch.subject, batch.past, batch.asked, batch.rate_hz), batch


def _scores(answer: Answer, batch: Batch) -> dict[str, float]:
    truth = batch.truth.unflatten(1, (-1, batch.branches))
    told = answer.mean.unflatten(1, (-1, batch.branches))
    there = batch.subject.there[0]
    scores = {"r2": _explained(told[0, :, 0][:, there], truth[0, :, 0][:, there])}
    if batch.branches > 1:
        wanted, got = (x[0, :, 0][:, there] - x[0, :, -1][:, there] for x in (truth, told))
        scores["effect_r2"] = _explained(got, wanted)
    inside = ((batch.truth - answer.mean).abs() <= 1.6449 * _deviation(answer))[:, :, there]
    scores["coverage_90"] = float(inside.float().mean())
    return scores


def _deviation(answer: Answer) -> Tensor:
    return ((2 * answer.log_scale).exp() + answer.factors.square().sum(2)).sqrt()


def _ratios(answer: Answer, batch: Batch) -> Float[Tensor, " sample"]:
    known = batch.good & batch.subject.there.unsqueeze(1).unsqueeze(-1)
    return ((batch.truth - answer.mean).abs() / _deviation(answer))[known].cpu()


def _explained(told: Tensor, true: Tensor) -> float:
    """Share of each channel's variance over windows and time, mean over channels that vary."""
    error = (told - true).square().mean((0, 2))
    variance = (true - true.mean((0, 2), keepdim=True)).square().mean((0, 2))
    moved = variance > 1e-4
    return float((1 - error[moved] / variance[moved]).clamp_min(-2).mean()) if bool(moved.any()) else math.nan
