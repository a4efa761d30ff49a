"""The models of stimopt; see the files beside this one."""

if __name__ != "stimopt.models":
    raise ImportError("import stimopt.models, not models: the bare name would make a second copy of every class")

from typing import TYPE_CHECKING, Any

from .arx import ArxForecaster, fit_arx
from .basis_functions import BasisFunctionsForecaster, fit_basis_functions
from .delay_embedding import DelayEmbeddingForecaster, fit_delay_embedding
from .distance_decay import DistanceDecayForecaster, fit_distance_decay
from .dose_curves import fit_log_linear, fit_monotone, fit_no_dose, fit_saturating, fit_setting_means
from .evoked import MeanEvokedForecaster, fit_mean_evoked
from .gaussian_process import GaussianProcessForecaster, fit_gaussian_process
from .ieeg_adapt import Adapted, adapt, fit_ieeg_adapted
from .ieeg_forecaster import IeegForecaster, fit_ieeg_network
from .ieeg_foundation import FoundationForecaster, FoundationModel, load_foundation
from .ieeg_network import IeegNetwork, NetworkSize
from .ieeg_residual import ResidualForecaster
from .imagined import ImaginedSystem
from .impulse_regression import ImpulseForecaster, fit_impulse_regression
from .nearest import NearestForecaster, fit_nearest
from .other_sites import OtherSitesForecaster, fit_other_sites
from .persistence import PersistenceForecaster, fit_no_effect, fit_persistence
from .recurrent import RecurrentForecaster, fit_recurrent
from .residual_mlp import ResidualMlpForecaster, fit_residual_mlp
from .state_space import StateSpaceForecaster, fit_state_space

if TYPE_CHECKING:
    from .score import ScoreModel

__all__ = [
    "Adapted",
    "ArxForecaster",
    "BasisFunctionsForecaster",
    "DelayEmbeddingForecaster",
    "DistanceDecayForecaster",
    "FoundationForecaster",
    "FoundationModel",
    "GaussianProcessForecaster",
    "IeegForecaster",
    "IeegNetwork",
    "ImaginedSystem",
    "ImpulseForecaster",
    "MeanEvokedForecaster",
    "NearestForecaster",
    "NetworkSize",
    "OtherSitesForecaster",
    "PersistenceForecaster",
    "RecurrentForecaster",
    "ResidualForecaster",
    "ResidualMlpForecaster",
    "ScoreModel",
    "StateSpaceForecaster",
    "adapt",
    "fit_arx",
    "fit_basis_functions",
    "fit_delay_embedding",
    "fit_distance_decay",
    "fit_gaussian_process",
    "fit_ieeg_adapted",
    "fit_ieeg_network",
    "fit_impulse_regression",
    "fit_log_linear",
    "fit_mean_evoked",
    "fit_monotone",
    "fit_nearest",
    "fit_no_dose",
    "fit_no_effect",
    "fit_other_sites",
    "fit_persistence",
    "fit_recurrent",
    "fit_residual_mlp",
    "fit_saturating",
    "fit_setting_means",
    "fit_state_space",
    "load_foundation",
]


def __getattr__(name: str) -> Any:
    if name == "ScoreModel":  # BoTorch takes seconds to import, and only a search needs it
        from .score import ScoreModel

        return ScoreModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
