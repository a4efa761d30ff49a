"""The best constant setting for a patient, chosen on other patients: what a clinic without a search would do.

Every other patient's best settings are tried on all of them, by name ("A3-A4", 4 mA, 50 Hz),
since places differ between patients. The one with the best mean gain over silence is kept,
in units of each patient's range of scores. The patient itself takes no part.
"""

from collections.abc import Mapping, Sequence

import torch

from .assembly import Setting
from .errors import SpaceError
from .landscape import Landscape, repeated_scores
from .space import Value

NOMINATED = 4  # settings that each patient nominates
Plan = dict[str, Value]


def best_constant(own: Setting, others: Sequence[tuple[Setting, Landscape]], *, repeats: int, seed: int) -> Plan | None:
    """Values by parameter name; None where no setting of the others is allowed in all.

    Args:
        own: The patient to choose for; only its space and envelope are looked at.
        others: Settings and landscapes of the other patients.
        repeats: Windows per setting and patient.
        seed: Names their noise.
    """
    nominated = [plan for setting, landscape in others for plan in _nominated(setting, landscape)]
    everywhere = [own, *(setting for setting, _ in others)]
    plans = [plan for plan in nominated if all(_allowed(plan, setting) for setting in everywhere)]
    if not plans:
        return None
    gains = torch.stack([_gains(plans, setting, landscape, repeats, seed) for setting, landscape in others])
    return plans[int(gains.mean(0).argmax())]


def _nominated(setting: Setting, landscape: Landscape) -> list[Plan]:
    best = landscape.score.topk(min(NOMINATED, len(landscape.score))).indices
    return [setting.space.describe(landscape.unit[int(index)]) for index in best]


def _allowed(plan: Mapping[str, Value], setting: Setting) -> bool:
    try:
        stimulus = setting.space.stimulus(setting.space.encode(plan))
    except SpaceError:  # this patient has no such contacts
        return False
    return bool(setting.envelope.allowed(stimulus))


def _gains(plans: Sequence[Plan], setting: Setting, landscape: Landscape, repeats: int, seed: int) -> torch.Tensor:
    assert setting.system is not None  # a study always names a system
    unit = torch.stack([setting.space.encode(plan) for plan in plans])
    stimuli = setting.space.stimulus(unit)
    scores = repeated_scores(setting.system, setting.objective, stimuli, repeats=repeats, seed=seed).mean(0)
    spread = float(landscape.score.max() - landscape.score.min())
    return (scores - landscape.silence) / (spread or 1.0)
