"""A trained network applied to log-mels."""
