"""What a trained artefact is: configuration, front end, augmentation, network."""
