"""Pre-training, detectors and releases: scripts built from the package."""
