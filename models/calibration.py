"""From logits to probabilities: the only place where one becomes the other."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from models.errors import ConfigError

TEMPERATURE_RANGE = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """What makes a network's logits honest probabilities.

    Parameters
    ----------
    temperature : float
        Logits are divided by it before the softmax (Guo et al. 2017, equation 9): above 1 lowers the confidence,
        below 1 raises it.

    Raises
    ------
    ConfigError
        If the temperature is not positive.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits into calibrated probabilities.

        Parameters
        ----------
        logits : np.ndarray, float, shape (..., n_classes)
            Scores of the network.

        Returns
        -------
        np.ndarray, float64, shape (..., n_classes), range 0..1
            Sums to 1 over the last axis.
        """
        return special.softmax(np.asarray(logits, dtype=np.float64) / self.temperature, axis=-1)

    def to_dict(self) -> dict[str, float]:
        """Return the settings as a checkpoint stores them."""
        return {"temperature": float(self.temperature)}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Calibration":
        """Rebuild what ``to_dict`` gave; KeyError, TypeError or ValueError where it was edited."""
        return cls(temperature=float(values["temperature"]))


def fit(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Find the temperature that minimises the log loss (Guo et al. 2017, section 4.2).

    Parameters
    ----------
    logits : np.ndarray, float, shape (n, n_classes)
        Scores of the network on data it was not trained on.
    labels : np.ndarray, int, shape (n,)
        True class of each row.

    Returns
    -------
    Calibration
        Its temperature is within ``TEMPERATURE_RANGE``; 1 where one row or one class has nothing to say about it.
    """
    if len(np.unique(labels)) < 2:
        return Calibration()
    from scipy import optimize  # late: prediction has no need of it
    scores, rows = np.asarray(logits, dtype=np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -special.log_softmax(scores / np.exp(log_temperature), axis=1)[rows, labels].mean()

    found = optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURE_RANGE), method="bounded")
    return Calibration(temperature=float(np.exp(found.x)))
