"""What one must know of a trained model to use it, apart from its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.audio_frontend import frontend_fingerprint
from models.calibration import Calibration
from models.classes import ClassList, DecisionRules
from models.efficientnet_config import EfficientNetConfig, FrontendConfig
from models.errors import ConfigError


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

    def to_dict(self) -> dict:
        """Return plain types; ``from_dict`` gives the description back."""
        return {"path": self.path, "sha256": self.sha256, "model_name": self.model_name,
                "config": self.config.to_dict(), "frontend": self.frontend.to_dict(), "fingerprint": self.fingerprint,
                "class_names": list(self.classes.names), "calibration": self.calibration.to_dict(),
                "thresholds": dict(self.rules.thresholds), "reject_class": self.rules.reject_class,
                "n_parameters": self.n_parameters, "metadata": dict(self.metadata)}

    @classmethod
    def from_dict(cls, values: Mapping) -> "ModelDescription":
        """Rebuild what ``to_dict`` gave.

        Raises
        ------
        ConfigError
            If the front end is not the one of its fingerprint, or a setting is impossible.
        KeyError, TypeError, ValueError, AttributeError
            If something is missing or garbled.
        """
        frontend = FrontendConfig.from_dict(values["frontend"])
        if values["fingerprint"] != frontend_fingerprint(frontend):
            raise ConfigError(f"its front end does not match its fingerprint {str(values['fingerprint'])[:12]}")
        classes = ClassList(tuple(values["class_names"]))
        thresholds = {name: float(values["thresholds"][name]) for name in classes.names}
        return cls(path=str(values["path"]), sha256=str(values["sha256"]), model_name=str(values["model_name"]),
                   config=EfficientNetConfig.from_dict(values["config"]).replace(frontend=frontend),
                   frontend=frontend, classes=classes, calibration=Calibration.from_dict(values["calibration"]),
                   rules=DecisionRules(thresholds, str(values["reject_class"])),
                   n_parameters=int(values["n_parameters"]), metadata=dict(values["metadata"]))
