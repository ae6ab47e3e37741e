"""Sound from disk: decoding, recorders."""
