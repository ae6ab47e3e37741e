"""What ``--audit`` leaves behind: a page to read, and the same as a table and as JSON."""

from collections.abc import Sequence

from utils.preparation.audit import audit
from utils.preparation.audit_page import write_audit_page
from utils.preparation.confounds import measure_confounds
from utils.preparation.dataset import files_frame, labels_frame
from utils.preparation.extraction import ExtractedRecording, PreprocessSettings
from utils.preparation.regions import Source
from utils.preparation.similarity import SimilarPair
from utils.storage.files import write_json
from utils.storage.manifest import FORMAT_VERSION
from utils.storage.tables import write_table


def write_audit(settings: PreprocessSettings, sources: Sequence[Source], results: Sequence[ExtractedRecording],
                similar: Sequence[SimilarPair]) -> None:
    """Write ``audit.html``, ``audit.csv`` and ``audit.json`` into the output folder.

    Parameters
    ----------
    settings : PreprocessSettings
        Names the folders.
    sources, results : sequences
        In one order.
    similar : sequence of SimilarPair
        Source paths that sound the same.
    """
    files, labels = files_frame(results), labels_frame(sources)
    confounds = measure_confounds(files, labels)
    findings = audit(files, labels, similar=similar, confounds=confounds)
    write_table(settings.output_dir / "audit.csv", files_frame(results, findings=findings))
    write_json(settings.output_dir / "audit.json", {
        "format_version": FORMAT_VERSION, "findings": [finding.to_dict() for finding in findings],
        "confounds": confounds.to_dict("records")})
    write_audit_page(settings.output_dir / "audit.html", findings=findings, files=files, labels=labels,
                     confounds=confounds, input_dir=settings.input_dir)
