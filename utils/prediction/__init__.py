"""A checkpoint and audio to results."""
