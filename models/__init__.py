"""The models of stimopt; see the files beside this one."""

if __name__ != "stimopt.models":
    raise ImportError("import stimopt.models, not models: the bare name would make a second copy of every class")

from typing import TYPE_CHECKING, Any

from .arx import ArxForecaster, fit_arx
from .evoked import MeanEvokedForecaster, fit_mean_evoked
from .gaussian_process import GaussianProcessForecaster, fit_gaussian_process
from .ieeg_forecaster import IeegForecaster, fit_ieeg_network
from .ieeg_network import IeegNetwork, NetworkSize
from .imagined import ImaginedSystem
from .persistence import PersistenceForecaster, fit_no_effect, fit_persistence
from .state_space import StateSpaceForecaster, fit_state_space

if TYPE_CHECKING:
    from .score import ScoreModel

__all__ = [
    "ArxForecaster",
    "GaussianProcessForecaster",
    "IeegForecaster",
    "IeegNetwork",
    "ImaginedSystem",
    "MeanEvokedForecaster",
    "NetworkSize",
    "PersistenceForecaster",
    "ScoreModel",
    "StateSpaceForecaster",
    "fit_arx",
    "fit_gaussian_process",
    "fit_ieeg_network",
    "fit_mean_evoked",
    "fit_no_effect",
    "fit_persistence",
    "fit_state_space",
]


def __getattr__(name: str) -> Any:
    if name == "ScoreModel":  # BoTorch takes seconds to import, and only a search needs it
        from .score import ScoreModel

        return ScoreModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
