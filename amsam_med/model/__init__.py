"""The network: encoders, prompts, LoRA decoder, calibration."""

from amsam_med.model.amsam import AmSam, Prediction
from amsam_med.model.build import build_amsam

__all__ = ["AmSam", "Prediction", "build_amsam"]
