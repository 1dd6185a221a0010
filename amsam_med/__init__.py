"""AM-SAM Med: few-shot segmentation of medical images with a prompted, adapted Segment Anything model.

One call for each verb, with a typed result::

    from amsam_med import open_model, segment, train, evaluate

    found = open_model("amsam_isic").segment("lesion.jpg")
    adapter = train("my_lesions", "run", shots=8).adapter

Importing the package loads nothing else: torch and the rest come with the first name that needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amsam_med.errors import AmsamError, ConfigError, DataError, WeightsError
    from amsam_med.evaluate import EvaluateOptions, EvaluateResult, evaluate
    from amsam_med.opened_model import Model, SegmentedImage, open_model
    from amsam_med.segment import SegmentOptions, SegmentSummary, segment
    from amsam_med.train import TrainOptions, TrainResult, train

__version__ = "0.1.0"

__all__ = [
    "AmsamError",
    "ConfigError",
    "DataError",
    "EvaluateOptions",
    "EvaluateResult",
    "Model",
    "SegmentOptions",
    "SegmentSummary",
    "SegmentedImage",
    "TrainOptions",
    "TrainResult",
    "WeightsError",
    "__version__",
    "evaluate",
    "open_model",
    "segment",
    "train",
]

_MODULES = {
    "errors": ("AmsamError", "ConfigError", "DataError", "WeightsError"),
    "evaluate": ("EvaluateOptions", "EvaluateResult"),
    "opened_model": ("Model", "SegmentedImage", "open_model"),
    "segment": ("SegmentOptions", "SegmentSummary"),
    "train": ("TrainOptions", "TrainResult"),
}
_VERBS = ("evaluate", "segment", "train")  # modules that are called; see amsam_med.verbs
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name in _VERBS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
