"""Linear probing: the body stays as it is, a regularised linear classifier learns on what it hears.

Embeddings are computed once; the classifier then takes seconds. What comes out is an ordinary checkpoint, and nothing
of what the start knows is lost (Alain and Bengio 2016, "Understanding
intermediate layers using linear classifier probes"; Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", ICLR).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from models.efficientnet import SpectrogramClassifier, classifier_of
from models.efficientnet_config import EfficientNetConfig
from utils import metrics
from utils.running.progress import progress
from utils.storage.spectrograms import ArrayDataset, SpectrogramDataset, make_loader
from utils.storage.splits import grouped_folds

STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # scikit-learn's C, tried from the strongest regularisation on
_MOST_FOLDS = 5
_MOST_STEPS = 500
_NEVER = 30.0  # what a class without rows stands below the smallest intercept: a probability of about 1e-13


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """A linear map from embeddings to logits.

    Parameters
    ----------
    weight : numpy.ndarray
        float32 ``(n_classes, n_features)``.
    bias : numpy.ndarray
        float32 ``(n_classes,)``.
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Return float32 ``(n, n_classes)``."""
        return embeddings @ self.weight.T + self.bias

    def put_into(self, model: SpectrogramClassifier) -> None:
        """Make it the classifier of a model, which is changed in place."""
        layer = classifier_of(model)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weight))
            layer.bias.copy_(torch.from_numpy(self.bias))


def fit_linear(embeddings: np.ndarray, labels: np.ndarray, *, n_classes: int, strength: float) -> LinearClassifier:
    """Fit a logistic regression with L2 regularisation on standardised embeddings, balanced over classes.

    Parameters
    ----------
    embeddings : numpy.ndarray
        float32 ``(n, n_features)``.
    labels : numpy.ndarray
        int ``(n,)``; at least two classes.
    n_classes : int
        Outputs; a class without rows gets logits that never win.
    strength : float
        C of ``sklearn.linear_model.LogisticRegression``: the smaller, the stronger the regularisation.

    Returns
    -------
    LinearClassifier
        For embeddings as they are: the standardisation is folded into it.
    """
    scaler = StandardScaler().fit(embeddings)
    regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=_MOST_STEPS)
    regression.fit(scaler.transform(embeddings), labels)
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn gives one row, of the second class against the first
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight = np.zeros((n_classes, embeddings.shape[1]))
    bias = np.full(n_classes, intercepts.min() - _NEVER)
    weight[regression.classes_] = coefficients / scaler.scale_
    bias[regression.classes_] = intercepts - (coefficients / scaler.scale_) @ scaler.mean_
    return LinearClassifier(weight.astype(np.float32), bias.astype(np.float32))


def fit_probe(model: SpectrogramClassifier, dataset: SpectrogramDataset | ArrayDataset, recording_ids: np.ndarray, *,
              n_classes: int, config: EfficientNetConfig, device: torch.device, n_workers: int
              ) -> tuple[LinearClassifier, float, list[dict[str, float]]]:
    """Make a linear classifier of windows the classifier of a model, which is changed in place.

    Parameters
    ----------
    model : SpectrogramClassifier
        On the device; left in evaluation mode.
    dataset : SpectrogramDataset or ArrayDataset
        The windows, with their labels.
    recording_ids : numpy.ndarray
        str ``(n,)``.
    n_classes : int
        Outputs.
    config : EfficientNetConfig
        ``batch_size``, ``seed``.
    device : torch.device
        Where to compute.
    n_workers : int
        Loading processes.

    Returns
    -------
    classifier : LinearClassifier
        What was put in.
    strength : float
        Of its regularisation, from ``choose_strength``.
    table : list of dict
        From ``choose_strength``.
    """
    embeddings = embed(model, dataset, batch_size=config.batch_size, device=device, n_workers=n_workers)
    strength, table = choose_strength(embeddings, dataset.labels, recording_ids, n_classes=n_classes,
                                      random_state=config.seed)
    classifier = fit_linear(embeddings, dataset.labels, n_classes=n_classes, strength=strength)
    classifier.put_into(model)
    return classifier, strength, table


def choose_strength(embeddings: np.ndarray, labels: np.ndarray, recording_ids: np.ndarray, *, n_classes: int,
                    strengths: Sequence[float] = STRENGTHS, random_state: int) -> tuple[float, list[dict[str, float]]]:
    """Choose the regularisation by cross-validation over recordings.

    Parameters
    ----------
    embeddings, labels : numpy.ndarray
        As in ``fit_linear``.
    recording_ids : numpy.ndarray
        str ``(n,)``: a recording is never on both sides.
    n_classes : int
        Outputs.
    strengths : sequence of float
        What to try, the strongest regularisation first.
    random_state : int
        Seed of the folds.

    Returns
    -------
    strength : float
        The strongest regularisation whose log loss is within a standard error of the lowest: the folds are of
        the same places, and at other places more regularisation does better (Breiman et al. 1984, "Classification and
        Regression Trees", section 3.4.3, the one-standard-error rule).
    table : list of dict
        ``strength``, ``log_loss`` (of recordings, averaged over those of a class, then over classes),
        ``log_loss_error`` (its standard error), ``accuracy``, ``macro_f1`` of each.
    """
    most = min(_MOST_FOLDS, len(set(recording_ids)), int(np.bincount(labels).max()))
    folds = grouped_folds(labels, recording_ids, n_folds=max(2, most), random_state=random_state)
    table = []
    for strength in progress(strengths, total=len(strengths), description="regularisation", unit="strength",
                             leave=False):
        logits = np.zeros((len(labels), n_classes), dtype=np.float32)
        for held_out in folds:
            learnt = np.setdiff1d(np.arange(len(labels)), held_out)
            if len(np.unique(labels[learnt])) > 1:
                logits[held_out] = fit_linear(embeddings[learnt], labels[learnt], n_classes=n_classes,
                                              strength=strength).logits(embeddings[held_out])
        table.append({"strength": strength, **_scores(logits, labels, recording_ids, n_classes=n_classes)})
    best = min(table, key=lambda row: row["log_loss"])
    return next(row["strength"] for row in sorted(table, key=lambda row: row["strength"])
                if row["log_loss"] <= best["log_loss"] + best["log_loss_error"]), table


def _scores(logits: np.ndarray, labels: np.ndarray, recording_ids: np.ndarray, *, n_classes: int) -> dict[str, float]:
    losses = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none").numpy()
    of_recordings = pd.Series(losses.astype(float)).groupby([labels, recording_ids]).mean().groupby(level=0)
    means, errors = of_recordings.mean(), of_recordings.sem().fillna(0.0)
    scores = metrics.classification_scores(
        metrics.confusion_matrix(labels, logits.argmax(axis=1), n_classes=n_classes))
    return {"log_loss": float(means.mean()), "log_loss_error": float(np.sqrt((errors ** 2).sum()) / len(errors)),
            "accuracy": scores["accuracy"] or 0.0, "macro_f1": scores["macro_f1"] or 0.0}


@torch.inference_mode()
def embed(model: SpectrogramClassifier, dataset: SpectrogramDataset | ArrayDataset, *, batch_size: int,
          device: torch.device, n_workers: int) -> np.ndarray:
    """Return what the body of a model makes of windows, float32 ``(n_windows, n_features)``, in the data set's order.

    Parameters
    ----------
    model : SpectrogramClassifier
        On the device; left in evaluation mode.
    dataset : SpectrogramDataset or ArrayDataset
        The windows.
    batch_size, n_workers : int
        How they are loaded.
    device : torch.device
        Where to compute.

    Notes
    -----
    In float32, as prediction computes: the classifier is fitted to exactly what it will see.
    """
    loader = make_loader(dataset, batch_size=batch_size, shuffle_seed=None, n_workers=n_workers,
                         pin_memory=device.type == "cuda")
    model.eval()
    parts = []
    for batch in progress(loader, total=len(loader), description="embeddings", unit="batch", leave=False):
        parts.append(model.embed(batch.log_mel.to(device, non_blocking=True)).cpu().numpy())
    return np.concatenate(parts)
