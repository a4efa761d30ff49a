"""`stimopt replay`: a policy, and another to compare with, on the recorded trials of a dataset."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .assembly import policy_in
from .config import Named
from .datasets import load_table
from .policy import Policy
from .replay import replay_policy
from .replay_curves import Curve, ReplayCurves
from .safety import Envelope
from .space import StimulationSpace
from .statistics import Interval

COMPARED_AT = 20  # trials; early enough that a search has not seen most of a table


@dataclass(frozen=True)
class NamedPolicy:
    """Builds a policy by its entry point's name; a plain class, so that it travels to other processes."""

    name: str

    def __call__(self, space: StimulationSpace, envelope: Envelope, seed: int) -> Policy:
        """The policy in one replay."""
        return policy_in(Named(name=self.name), {"space": space, "envelope": envelope, "seed": seed})


def replay_dataset(
    dataset: str, policy: str, outcome: str | None, trials: int, repeats: int, seed: int, versus: str, workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Replay one or two policies on paired draws of the recorded trials.

    Args:
        dataset: Name of a dataset, or path of a dataset.yaml.
        policy: Name of a policy.
        outcome: Which outcome; None takes the first of the card.
        trials: Length of each replay.
        repeats: Replays, each with draws of its own, the same for both policies.
        seed: Names every random stream.
        versus: The other policy; empty for none.
        workers: Processes.
        progress: Called with finished and all replays, per policy.

    Returns:
        The curves by policy with their intervals, and the paired difference at 20 trials, ready for JSON.

    Raises:
        ConfigError: If a policy is unknown or cannot be built from a space and an envelope.
        DataError: If the dataset is not at hand, is broken, or is too small for `trials`.
    """
    table = load_table(dataset)
    chosen = outcome or next(iter(table.outcomes))
    names = [policy] if versus in ("", policy) else [policy, versus]
    for name in names:
        NamedPolicy(name)(table.space, Envelope(name, "checks that the policy can be built", (), ()), seed)
    found = {
        name: replay_policy(
            NamedPolicy(name), table, chosen, trials, repeats, seed, workers=workers, name=name, progress=progress
        )
        for name in names
    }
    at = min(COMPARED_AT, trials)
    result: dict[str, Any] = {
        "dataset": dataset, "outcome": chosen, "policy": policy, "versus": names[1] if len(names) > 1 else "",
        "trials": trials, "repeats": repeats, "seed": seed, "n": list(range(1, trials + 1)),
        "curves": {name: _bands(curves) for name, curves in found.items()},
    }  # fmt: skip
    if len(names) > 1:
        gap = found[policy].difference(found[versus], at)
        result["difference"] = {"at_trial": at, "curve": "exploration", **_plain(gap)}
        result["sentence"] = _sentence(result, gap)
    return result


def _bands(curves: ReplayCurves) -> dict[str, dict[str, list[float]]]:
    kinds: tuple[Curve, ...] = ("exploration", "exploitation")
    return {kind: dict(zip(("median", "low", "high"), map(_list, curves.band(kind)), strict=True)) for kind in kinds}


def _list(values: Tensor) -> list[float]:
    plain: list[float] = values.tolist()
    return plain


def _plain(interval: Interval) -> dict[str, float]:
    return {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def _sentence(result: dict[str, Any], gap: Interval) -> str:
    verdict = "better" if gap.low > 0 else "worse" if gap.high < 0 else "not shown to be better or worse"
    return (
        f"On the recorded trials of {result['dataset']} ({result['outcome']}), after "
        f"{result['difference']['at_trial']} trials the policy '{result['policy']}' is {verdict} than "
        f"'{result['versus']}': its recommendation's truth is "
        f"{gap.estimate:+.3f} of the recorded range (95 % interval {gap.low:+.3f} to {gap.high:+.3f}, mean over "
        f"{result['repeats']} paired replays; 1 is the best recorded stimulus, 0 the worst)."
    )
