"""From logits to probabilities: the only place where one becomes the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from models.errors import ConfigError

TEMPERATURE_RANGE = (0.05, 20.0)  # a guard for absurd logits; the prior keeps what is fitted well inside
# How many recordings the belief that nothing must be changed is worth. Twelve for log T: thirty recordings of two
# classes, all right, bring T down to 0.5 at most. Three hundred for a class bias: it follows the shares that the
# classes have in validation, which are others at another place. On 1,588 real windows calibrated out of fold, by
# recording every number from 4 on gives the same log loss (0.46 to 0.47); by source 4 costs four points of accuracy,
# 300 costs none.
TEMPERATURE_PRIOR = 12.0
BIAS_PRIOR = 300.0


@dataclass(frozen=True)
class Calibration:
    """What makes a network's logits honest probabilities: ``softmax(logits / temperature + class_biases)``.

    Parameters
    ----------
    temperature : float
        Logits are divided by it before the softmax (Guo et al. 2017, equation 9): above 1 lowers the confidence,
        below 1 raises it.
    class_biases : tuple of float, length n_classes or 0
        Added to the scaled logits, in nats. They give each class the share that it has in the data, which class
        weights in the loss shift (Alexandari et al. 2020, "bias-corrected temperature scaling"). Empty is all 0.

    Raises
    ------
    ConfigError
        If the temperature is not positive or a bias is not finite.
    """

    temperature: float = 1.0
    class_biases: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")
        if not np.isfinite(self.class_biases).all():
            raise ConfigError(f"class_biases must be finite, got {self.class_biases}")

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

        Raises
        ------
        ConfigError
            If there are biases for another number of classes.
        """
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        if self.class_biases:
            if len(self.class_biases) != scaled.shape[-1]:
                raise ConfigError(f"class_biases must be one for each of {scaled.shape[-1]} classes, got"
                                  f" {len(self.class_biases)}: was the checkpoint edited?")
            scaled = scaled + self.class_biases
        return special.softmax(scaled, axis=-1)

    def undone(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the probabilities that the network's logits alone would give.

        Parameters
        ----------
        probabilities : np.ndarray, float, shape (..., n_classes), range 0..1
            What ``probabilities`` gave.

        Returns
        -------
        np.ndarray, float64, shape (..., n_classes), range 0..1
            Sums to 1 over the last axis.
        """
        scaled = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        if self.class_biases:
            scaled = scaled - self.class_biases
        return special.softmax(self.temperature * scaled, axis=-1)

    def to_dict(self) -> dict:
        """Return the settings as a checkpoint stores them; without biases as version 2.0.0 did."""
        biases = {"class_biases": [float(bias) for bias in self.class_biases]} if self.class_biases else {}
        return {"temperature": float(self.temperature), **biases}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Calibration":
        """Rebuild what ``to_dict`` gave; KeyError, TypeError or ValueError where it was edited."""
        return cls(float(values["temperature"]), tuple(float(bias) for bias in values.get("class_biases", ())))


def fit(logits: np.ndarray, labels: np.ndarray, *, recording_ids: Sequence[str] | np.ndarray | None = None
        ) -> Calibration:
    """Find the most probable temperature and class biases, given data and a prior that the logits are right.

    Minimised is the log loss, summed over recordings (Guo et al. 2017, section 4.2), plus
    ``TEMPERATURE_PRIOR / 2 * log(T)**2 + BIAS_PRIOR / 2 * sum(biases**2)``: Gaussian priors around "no change", without
    which T goes to 0 on a small set that is all right. With many recordings the data decide.

    Parameters
    ----------
    logits : np.ndarray, float, shape (n, n_classes)
        Scores of the network on data it was not trained on.
    labels : np.ndarray, int, shape (n,)
        True class of each row.
    recording_ids : sequence of str, length n, optional
        Recording of each row: the rows of a recording together count as one. Each row is its own when None.

    Returns
    -------
    Calibration
        Its temperature is within ``TEMPERATURE_RANGE``, its biases sum to 0. No change where fewer than two classes
        occur.
    """
    if len(np.unique(labels)) < 2:
        return Calibration()
    from scipy import optimize  # late: prediction has no need of it
    scores, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    rows, weights = np.arange(len(labels)), _row_weights(len(labels), recording_ids)
    truth = np.eye(scores.shape[1])[labels]

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        """Return what is minimised and its gradient at (log T, biases)."""
        log_temperature, biases = values[0], values[1:]
        scaled = scores / np.exp(log_temperature)
        log_probabilities = special.log_softmax(scaled + biases, axis=1)
        residuals = (np.exp(log_probabilities) - truth) * weights[:, None]
        prior = TEMPERATURE_PRIOR * log_temperature ** 2 + BIAS_PRIOR * (biases ** 2).sum()
        return (prior / 2 - log_probabilities[rows, labels] @ weights,
                np.append(TEMPERATURE_PRIOR * log_temperature - (residuals * scaled).sum(),
                          BIAS_PRIOR * biases + residuals.sum(axis=0)))

    n_classes = scores.shape[1]
    found = optimize.minimize(loss, np.zeros(1 + n_classes), jac=True, method="L-BFGS-B",
                              bounds=[tuple(np.log(TEMPERATURE_RANGE)), *[(None, None)] * n_classes]).x
    return Calibration(float(np.exp(found[0])), tuple((found[1:] - found[1:].mean()).tolist()))


def cross_fitted_probabilities(logits: np.ndarray, labels: np.ndarray, folds: Sequence[np.ndarray], *,
                               recording_ids: Sequence[str] | np.ndarray | None = None) -> np.ndarray:
    """Calibrate each fold by what was fitted on the others, so that scores of the result are not flattered.

    Parameters
    ----------
    logits, labels, recording_ids
        As in ``fit``.
    folds : sequence of np.ndarray, int
        Rows of each fold; together every row once. No recording should be in two.

    Returns
    -------
    np.ndarray, float64, shape (n, n_classes), range 0..1
        Each row sums to 1.

    Raises
    ------
    ConfigError
        If the folds do not hold every row once.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if not np.array_equal(np.sort(np.concatenate(folds)), np.arange(len(labels))):
        raise ConfigError(f"folds must hold each of {len(labels)} rows once, got {len(folds)} folds of"
                          f" {sum(map(len, folds))} rows")
    recordings = np.arange(len(labels)) if recording_ids is None else np.asarray(recording_ids)
    probabilities = np.empty(logits.shape, dtype=np.float64)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(labels)), fold)
        fitted = fit(logits[others], labels[others], recording_ids=recordings[others])
        probabilities[fold] = fitted.probabilities(logits[fold])
    return probabilities


def _row_weights(n_rows: int, recording_ids: Sequence[str] | np.ndarray | None) -> np.ndarray:
    """Return float64 ``(n_rows,)``: one over the number of rows of the row's recording."""
    if recording_ids is None:
        return np.ones(n_rows)
    _, recording, n_windows = np.unique(np.asarray(recording_ids), return_inverse=True, return_counts=True)
    return 1.0 / n_windows[recording]
