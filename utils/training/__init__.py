"""Manifests to a checkpoint."""
