"""How the embedded weights were made: bases, detectors, the bundles' models, and their release."""
