"""The dataset doctor: what a data set suffers from, read from tables of its recordings and labels.

Nothing here opens a recording: ``examination`` and ``similarity`` gather the facts.
"""

from collections.abc import Sequence

import pandas as pd

from utils.preparation.confounds import confound_findings, measure_confounds
from utils.preparation.findings import SEVERITIES, Finding, tidy_files, tidy_labels
from utils.preparation.label_findings import label_findings
from utils.preparation.similarity import SimilarPair
from utils.preparation.sound_findings import sound_findings


def audit(files: pd.DataFrame, labels: pd.DataFrame, *, similar: Sequence[SimilarPair],
          confounds: pd.DataFrame | None = None) -> list[Finding]:
    """Return what is wrong with a data set.

    Parameters
    ----------
    files : pandas.DataFrame
        One row per recording, columns as ``findings.tidy_files`` describes them.
    labels : pandas.DataFrame
        One row per labelled region, columns as ``findings.tidy_labels`` describes them.
    similar : sequence of SimilarPair
        Recordings that sound alike; those whose content is the same are told as copies.
    confounds : pandas.DataFrame or None
        From ``measure_confounds``, where it was measured already.

    Returns
    -------
    list of Finding
        Errors first, then warnings, then notes; the same for the same tables in any order of rows.
    """
    tidy = tidy_files(files)
    if confounds is None:
        confounds = measure_confounds(files, labels)
    found = [*sound_findings(tidy),
             *label_findings(tidy, tidy_labels(labels, tidy), similar=similar,
                             class_names=sorted(set(labels["class_name"].astype(str)))),
             *confound_findings(confounds)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
