"""Patients brought together in the space of frozen features: by place first, then by a turn of the features.

Channels of two patients in one frame are paired by distance; only then are the features of the pairs turned onto each
other (orthogonal Procrustes), within the few directions that vary most. Whether that helps is told beside what comes
without it, on pairs that the turn never saw.

References: Schoenemann, Psychometrika 31 (1966) 1-10 (the turn); Haxby et al., Neuron 72 (2011) 404-416 (brains in a
common space).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stimopt.errors import ConfigError, DataError

from .ieeg_embedding import fit_linear_probe


def matched_channels(
    place_mm: Float[Tensor, "one 3"], other_mm: Float[Tensor, "another 3"], within_mm: float = 15.0
) -> Int[Tensor, "pair 2"]:
    """Channels of two patients paired one to one by place, the sum of distances least, pairs further apart dropped.

    Places must be in one frame, such as MNI; channels whose place is unknown are left out.

    Args:
        place_mm: Of the one patient's channels.
        other_mm: Of the other's.
        within_mm: Farthest that a pair may be apart.
    """
    apart = torch.cdist(place_mm.double(), other_mm.double())
    cost = apart.nan_to_num(1e6).clamp_max(1e3 * within_mm)
    one, other = linear_sum_assignment(cost.cpu().numpy())
    pairs = torch.stack([torch.as_tensor(one), torch.as_tensor(other)], -1)
    near = apart[pairs[:, 0], pairs[:, 1]] <= within_mm  # NaN is not
    return pairs[near.cpu()]


@dataclass(frozen=True)
class Alignment:
    """A turn of one patient's features onto another's, within the directions that vary most in both.

    Attributes:
        basis: Those directions.
        middle: Mean of the turned patient's matched features.
        other_middle: Mean of the other's.
        turn: Orthogonal.
    """

    basis: Float[Tensor, "width component"]
    middle: Float[Tensor, " width"]
    other_middle: Float[Tensor, " width"]
    turn: Float[Tensor, "component component"]

    def turned(self, features: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch component"]:
        """Features of the turned patient in the common space."""
        return (features.to(self.basis) - self.middle) @ self.basis @ self.turn

    def kept(self, features: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch component"]:
        """Features of the other patient in the common space."""
        return (features.to(self.basis) - self.other_middle) @ self.basis


def align(features: Float[Tensor, "row width"], other: Float[Tensor, "row width"], components: int = 4) -> Alignment:
    """Turn one patient's features onto another's, given rows that match: channels paired by place, or sites.

    Args:
        features: Of the patient that is turned.
        other: Of the one that stays.
        components: Directions that are kept, at most half as many as rows: more could be turned onto anything.

    Raises:
        DataError: If there are fewer than four rows.
        ConfigError: If `components` is not positive.
    """
    if components < 1:
        raise ConfigError(f"components is {components}; keep one direction or more.")
    if len(features) < 4:
        raise DataError(f"{len(features)} pairs match; an alignment needs 4 or more: widen `within_mm`.")
    x, y = features.double(), other.double()
    middle, other_middle = x.mean(0), y.mean(0)
    both = torch.cat([x - middle, y - other_middle])
    basis = torch.linalg.svd(both, full_matrices=False).Vh[: min(components, len(x) // 2)].mT
    turn, _ = orthogonal_procrustes(((x - middle) @ basis).cpu().numpy(), ((y - other_middle) @ basis).cpu().numpy())
    return Alignment(basis, middle, other_middle, torch.as_tensor(turn).to(basis))


def alignment_report(
    features: Float[Tensor, "one width"],
    place_mm: Float[Tensor, "one 3"],
    other: Float[Tensor, "another width"],
    other_mm: Float[Tensor, "another 3"],
    target: Float[Tensor, " one"] | None = None,
    other_target: Float[Tensor, " another"] | None = None,
    *,
    within_mm: float = 15.0,
    components: int = 4,
) -> dict[str, float]:
    """What bringing two patients together is worth: every pair is judged by an alignment that never saw it.

    Retrieval: how often the nearest of the other patient's channels, by features, is the one that a channel is paired
    with; means of reciprocal ranks beside it. Regression: a probe fitted on the other patient's channels is asked for
    this one's. "without" is the same directions with neither middles taken out nor a turn.

    Args:
        features: Of each channel, means over windows.
        place_mm: Of them, in the frame of both.
        other: Of the other patient.
        other_mm: Of the other patient.
        target: A number of each channel to be told from its features, if any.
        other_target: Of the other patient.
        within_mm: See `matched_channels`.
        components: See `align`.

    Returns:
        pairs and retrieval_chance; `retrieval`, `rank` and, with targets, `regression_r2`, each `_with` and `_without`.

    Raises:
        DataError: If fewer than five pairs match.
    """
    pairs = matched_channels(place_mm, other_mm, within_mm)
    if len(pairs) < 5:
        raise DataError(f"{len(pairs)} pairs are within {within_mm} mm; 5 or more are needed: widen `within_mm`.")
    x, y = features.double(), other.double()
    told: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    guesses: dict[str, list[Tensor]] = {"with": [], "without": []}
    for number, (mine, theirs) in enumerate(pairs.tolist()):
        seen = pairs[torch.arange(len(pairs)) != number]
        found = align(x[seen[:, 0]], y[seen[:, 1]], components)
        spaces = {
            "with": (found.turned(x[mine]), found.kept(y)),
            "without": (x[mine] @ found.basis, y @ found.basis),
        }
        for name, (asked, known) in spaces.items():
            apart = (known - asked).norm(dim=-1)
            place = 1 + int((apart < apart[theirs]).sum())
            told[name].append((float(place == 1), 1 / place))
            if other_target is not None:
                guesses[name].append(fit_linear_probe(known, other_target.unsqueeze(-1)).predict(asked)[0])
    report = {"pairs": float(len(pairs)), "retrieval_chance": 1 / len(y)}
    for name, rows in told.items():
        report[f"retrieval_{name}"], report[f"rank_{name}"] = (sum(c) / len(c) for c in zip(*rows, strict=True))
        if target is not None and guesses[name]:
            report[f"regression_r2_{name}"] = _explained(torch.stack(guesses[name]), target.double()[pairs[:, 0]])
    return report


def _explained(told: Tensor, true: Tensor) -> float:
    variance = float((true - true.mean()).square().sum())
    return 1 - float((told - true).square().sum()) / variance if variance > 0 else math.nan
