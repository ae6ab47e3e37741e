"""What one must know of a trained model to use it, apart from its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.audio_frontend import frontend_fingerprint
from models.calibration import Calibration
from models.classes import ClassList, DecisionRules
from models.efficientnet_config import EfficientNetConfig, FrontendConfig


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A trained model without its network: what every back end is told.

    Parameters
    ----------
    path : str
        The file it was read from.
    sha256 : str
        Of that file.
    model_name : str
        Network.
    config : EfficientNetConfig
        How it was trained; for NightScan 1's ResNet18 the defaults.
    frontend : FrontendConfig
        The only front end its inputs may come from.
    classes : ClassList
        Order of its outputs.
    calibration : Calibration
        From its logits to probabilities.
    rules : DecisionRules
        When a class is reported.
    n_parameters : int
        Numbers that were trained.
    metadata : Mapping
        Epoch, validation scores, whether leakage was allowed, content ids of the recordings learnt from.
    """

    path: str
    sha256: str
    model_name: str
    config: EfficientNetConfig
    frontend: FrontendConfig
    classes: ClassList
    calibration: Calibration
    rules: DecisionRules
    n_parameters: int
    metadata: Mapping = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identity of the front end."""
        return frontend_fingerprint(self.frontend)
