"""AM-SAM Med: few-shot segmentation of medical images with a prompted, adapted Segment Anything model."""

__version__ = "0.1.0"
