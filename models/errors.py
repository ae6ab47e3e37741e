"""The errors a user can cause; each carries one line: what, where, value, fix."""


class NightScanError(Exception):
    """Root of every error that NightScan raises on purpose."""


class ConfigError(NightScanError, ValueError):
    """A setting has an impossible value or an unknown name."""


class AudioError(NightScanError):
    """A recording cannot be used.

    Parameters
    ----------
    message : str
        What is wrong with which file.
    status : str
        The status word of ``files.csv``: ``empty``, ``silent``, ``too_short``, ``corrupt`` or ``unsupported``.
    """

    def __init__(self, message: str, *, status: str = "corrupt") -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self):
        """Keep ``status`` when the error crosses a process border."""
        return _rebuild_audio_error, (self.args[0], self.status)


class ManifestError(NightScanError):
    """A manifest or ``dataset.json`` breaks its contract."""


class CheckpointError(NightScanError):
    """A checkpoint cannot be trusted or does not fit."""


def _rebuild_audio_error(message: str, status: str) -> AudioError:
    return AudioError(message, status=status)
