"""What a checkpoint folder of the foundation model holds: its weights, or a patient's forecaster made of them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from .ieeg_blended import BlendedForecaster
from .ieeg_foundation import FoundationForecaster, FoundationModel
from .ieeg_parts import OngoingForecaster
from .ieeg_residual import ResidualForecaster
from .ieeg_sourced import SourcedForecaster


class SavedFoundation:
    """Restores whichever of them was saved; a patient's own may carry a correction beside the past trials."""

    forecasters: ClassVar[tuple[type, ...]] = (
        FoundationForecaster, ResidualForecaster, OngoingForecaster, BlendedForecaster, SourcedForecaster,
    )  # fmt: skip

    @classmethod
    def restore(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> (
        FoundationModel
        | FoundationForecaster
        | OngoingForecaster
        | ResidualForecaster
        | BlendedForecaster
        | SourcedForecaster
    ):
        """What `export` of one of the six took apart."""
        if "model" not in config:
            return FoundationModel.restore(config, tensors)
        if "sources" in config:
            return SourcedForecaster.restore(config, tensors)
        if "linear" in config:
            return BlendedForecaster.restore(config, tensors)
        if "ongoing" in config:
            return OngoingForecaster.restore(config, tensors)
        corrected = any(name.startswith("landmarks.") for name in tensors)
        return (ResidualForecaster if corrected else FoundationForecaster).restore(config, tensors)
