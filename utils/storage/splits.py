"""Which rows go into which fold: grouped and stratified."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from models.errors import ManifestError


def grouped_folds(labels: Sequence[int] | np.ndarray, groups: Sequence[str] | np.ndarray, *, n_folds: int,
                  random_state: int) -> list[np.ndarray]:
    """Split rows into folds stratified by label, each group whole on one side.

    Parameters
    ----------
    labels : array of int, (n_rows,)
        Class of each row.
    groups : array of str, (n_rows,)
        Recording of each row.
    n_folds : int
        At least 2.
    random_state : int
        Seed of the shuffle.

    Returns
    -------
    list of numpy.ndarray
        Row indices of each fold, ascending, disjoint, together all rows.

    Raises
    ------
    ManifestError
        If there are fewer recordings than folds.
    """
    n_groups = len(set(groups))
    if n_groups < n_folds:
        raise ManifestError(f"{n_folds} folds need at least {n_folds} recordings, got {n_groups}: lower --k_folds"
                            f" or add recordings")
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=random_state)
    with warnings.catch_warnings():
        # scikit-learn warns of classes with fewer rows than folds; preprocessing tells which class is missing where
        warnings.simplefilter("ignore", UserWarning)
        try:
            return [held_out for _, held_out in splitter.split(np.zeros(len(labels)), labels, groups)]
        except ValueError as error:
            raise ManifestError(f"{n_folds} folds need a class with at least {n_folds} segments ({error}):"
                                f" lower --k_folds or add recordings") from error
