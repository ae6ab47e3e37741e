"""The classes a network tells apart: their order, and what a row of probabilities is decided to mean."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.efficientnet_config import DEFAULT_CLASS_NAMES, EfficientNetConfig
from models.errors import ConfigError, ManifestError

NO_ANSWER = -1  # in place of a label where the reject class is reported


@dataclass(frozen=True)
class ClassList:
    """The classes in the order of the network's outputs.

    Parameters
    ----------
    names : tuple of str
        Class names; index is label.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"class names must differ, got {', '.join(self.names)}")
        if any(not name.strip() for name in self.names):
            raise ConfigError("class names must not be empty")

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> "ClassList":
        """Order the classes found: README order when all are default classes, else sorted."""
        found = set(labels)
        if found <= set(DEFAULT_CLASS_NAMES):
            return cls(tuple(name for name in DEFAULT_CLASS_NAMES if name in found))
        return cls(tuple(sorted(found)))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the label of a class name; ManifestError when unknown."""
        if name not in self.names:
            raise ManifestError(f"unknown class {name!r}: the classes are {', '.join(self.names)}")
        return self.names.index(name)


@dataclass(frozen=True)
class Decision:
    """What a row of probabilities is taken to mean.

    Parameters
    ----------
    predicted_class : str
        The top class where it reaches its threshold, else the reject class.
    confidence : float
        Probability of ``predicted_class``, 0..1; 0 where that is no class of the model.
    above_threshold : bool
        Whether the top class reached its threshold.
    top_class, top_confidence : str, float
        What the network ranked first, whatever the thresholds.
    """

    predicted_class: str
    confidence: float
    above_threshold: bool
    top_class: str
    top_confidence: float


@dataclass(frozen=True)
class DecisionRules:
    """When a class is reported.

    Parameters
    ----------
    thresholds : Mapping
        Probability each class must reach, 0..1, by name.
    reject_class : str
        Reported where none does.
    """

    thresholds: Mapping[str, float]
    reject_class: str

    @classmethod
    def of_config(cls, config: EfficientNetConfig, classes: ClassList) -> "DecisionRules":
        """Return the rules of a config for some classes."""
        return cls({name: config.threshold(name) for name in classes.names}, config.reject_class)

    def decide(self, probabilities: Mapping[str, float]) -> Decision:
        """Decide on the probabilities of all classes, by name; of equal ones the first is on top."""
        top = max(probabilities, key=lambda name: probabilities[name])
        above = probabilities[top] >= self.thresholds[top]
        predicted = top if above else self.reject_class
        return Decision(predicted, probabilities.get(predicted, 0.0), above, top, probabilities[top])

    def answers(self, probabilities: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
        """Decide on many rows at once, as ``decide`` does on one.

        Parameters
        ----------
        probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
            A row for each window.
        class_names : sequence of str, length n_classes
            Name of each column.

        Returns
        -------
        np.ndarray, int, shape (n,)
            Column of the class that is reported; ``NO_ANSWER`` where that is the reject class.
        """
        top = probabilities.argmax(axis=1)
        thresholds = np.array([self.thresholds[name] for name in class_names])
        told = np.array([name != self.reject_class for name in class_names])
        reached = probabilities[np.arange(len(top)), top] >= thresholds[top]
        return np.where(reached & told[top], top, NO_ANSWER)
