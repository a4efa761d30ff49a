"""The policies of stimopt; see the files beside this one."""

if __name__ != "stimopt.policies":
    raise ImportError("import stimopt.policies, not policies: the bare name would make a second copy of every class")

from .bayesian import BayesianPolicy
from .dose_surrogate import fit_dose_surrogate
from .gradient import GradientPolicy
from .open_loop import ConstantPolicy, GridPolicy, NoStimulationPolicy, RandomPolicy, SobolPolicy

__all__ = [
    "BayesianPolicy",
    "ConstantPolicy",
    "GradientPolicy",
    "GridPolicy",
    "NoStimulationPolicy",
    "RandomPolicy",
    "SobolPolicy",
    "fit_dose_surrogate",
]
