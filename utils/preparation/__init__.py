"""Recordings and labels to spectrograms and manifests."""
