"""Facts about the sound of a recording, gathered while it passes by: the dataset doctor's instruments."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SoundFacts:
    """What was measured of a recording as it is stored, at its own rate.

    Parameters
    ----------
    peak_dbfs, rms_dbfs : float or None
        Highest absolute sample and root mean square, over all channels, in dB relative to full scale; None for digital
        silence.
    dc_offset : float
        The mean of the channel whose mean is farthest from 0, in -1..1.
    clipped_share : float
        Share of samples, 0..1, that stand at the recording's own extreme in runs, as a converter that was overdriven
        leaves them.
    channel_correlation : float or None
        Pearson correlation of the first two channels, -1..1: near -1 is antiphase; None for mono or a silent channel.
    bandwidth_hertz : float or None
        Frequency above which nothing is left (far below what its rate could hold where it was upsampled or compressed);
        None for digital silence.
    content : str
        Hash of the decoded signal: the same for a copy in another lossless container.
    fingerprint : str
        What near-duplicates are recognised by, as text; see ``utils.preparation.similarity``.
    """

    peak_dbfs: float | None
    rms_dbfs: float | None
    dc_offset: float
    clipped_share: float
    channel_correlation: float | None
    bandwidth_hertz: float | None
    content: str
    fingerprint: str
