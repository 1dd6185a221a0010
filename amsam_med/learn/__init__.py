"""Few-shot training: the loss, the two levels and their gradients, and a cache of embeddings."""

from amsam_med.learn.cache import EmbeddingCache, EncodedDataset, ViewSampler
from amsam_med.learn.handler import BiLevelHandler, SeedHandler
from amsam_med.learn.levels import (
    lower_parameters,
    set_trainable,
    split_levels,
    trainable_state,
    upper_parameters,
)
from amsam_med.learn.loss import SegmentationLoss

__all__ = [
    "BiLevelHandler",
    "EmbeddingCache",
    "EncodedDataset",
    "SeedHandler",
    "SegmentationLoss",
    "ViewSampler",
    "lower_parameters",
    "set_trainable",
    "split_levels",
    "trainable_state",
    "upper_parameters",
]
