"""Opening a MONAI bundle: the one wiring diagram behind the command line, ``monai.bundle`` and every other face.

A bundle's configuration may hold Python expressions, which run when it is opened: open only bundles you trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from monai.bundle.config_parser import ConfigParser

from amsam_med import weights
from amsam_med.checkpoint import load_adapter, load_model, read_adapter
from amsam_med.errors import AmsamError, ConfigError, DataError
from amsam_med.model import AmSam
from amsam_med.views import ViewKind

Workflow = Literal["inference", "evaluate", "train"]

CONFIG_FILES: dict[str, tuple[str, ...]] = {
    "inference": ("inference.yaml",),
    "evaluate": ("inference.yaml", "evaluate.yaml"),
    "train": ("train.yaml",),
}
"""The files of ``configs/`` that make up each workflow; a later one overrides the ones before it."""


class BundleParser(ConfigParser):
    """A ``ConfigParser`` that lets an ``AmsamError`` through, where MONAI would bury it in RuntimeErrors."""

    def get_parsed_content(self, id: str = "", **kwargs: Any) -> Any:
        """Build a part and all that it refers to."""
        try:
            return super().get_parsed_content(id, **kwargs)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, AmsamError):
                    raise cause from None
                cause = cause.__cause__
            raise


def locate_bundle(name_or_path: str | Path) -> Path:
    """The folder of a bundle.

    Args:
        name_or_path: The name of a shipped bundle, or the path of any bundle's folder.

    Raises:
        DataError: There is no bundle of that name and none in that folder.
    """
    for root in (weights.bundles_folder() / str(name_or_path), Path(name_or_path)):
        if (root / "configs" / "metadata.json").is_file():
            return root.resolve()
    raise DataError(
        f"{name_or_path} is neither a shipped bundle ({', '.join(shipped_bundles())}) nor a folder with "
        "configs/metadata.json; give one of the names, or the path of a MONAI bundle"
    )


def shipped_bundles() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(metadata.parent.parent.name for metadata in weights.bundles_folder().glob("*/configs/metadata.json"))


def default_bundle(adapter: Path | None = None) -> str:
    """The shipped bundle to use where none is named: the one an adapter was trained with, else the lesions'.

    Raises:
        WeightsError: The adapter is missing or damaged.
    """
    trained_with = None if adapter is None else read_adapter(adapter)[1].get("bundle")
    return trained_with if trained_with in shipped_bundles() else "amsam_isic"


def open_bundle(
    name_or_path: str | Path, workflow: Workflow, overrides: Mapping[str, Any] | None = None
) -> ConfigParser:
    """Read a bundle's configuration; parts are built when they are asked for.

    Args:
        name_or_path: See :func:`locate_bundle`.
        workflow: Which of the bundle's wiring diagrams.
        overrides: Values that replace the configuration's, by id (``"train::trainer::max_epochs"``).

    Returns:
        A parser; ``get_parsed_content(id)`` builds a part and all that it refers to.

    Raises:
        DataError: There is no such bundle.
        ConfigError: An override names an entry that the configuration does not have.
    """
    root = locate_bundle(name_or_path)
    parser = BundleParser()
    parser.read_meta(str(root / "configs" / "metadata.json"))
    parser.read_config(config_files(root, workflow))
    for key, value in {"bundle_root": str(root), **(overrides or {})}.items():
        if key not in parser:
            raise ConfigError(
                f"bundle {root.name} has no entry {key!r} in its {workflow} configuration; check the name"
            )
        parser[key] = value
    return parser


def config_files(root: Path, workflow: Workflow) -> list[str]:
    """Paths of the configuration files of a workflow."""
    return [str(root / "configs" / name) for name in CONFIG_FILES[workflow]]


def with_weights(network: AmSam, model_file: str | Path, adapter_file: str | Path | None = None) -> AmSam:
    """Fill a network for inference: from a bundle's model, or from an adapter on its base.

    A shipped bundle's model is checked against the sha256 on record.

    Args:
        network: The network as the configuration builds it; with an adapter, its base is loaded already.
        model_file: The bundle's ``models/model.pt``; not read where there is an adapter.
        adapter_file: An adapter.

    Returns:
        The same network in evaluation mode.

    Raises:
        WeightsError: A file is missing, damaged, or of another network.
    """
    if adapter_file is None:
        load_model(network, _verified(Path(model_file)))
    else:
        load_adapter(network, Path(adapter_file))
    return network.eval()


def model_overrides(
    adapter: Path | None = None,
    base_weights: Path | None = None,
    detector: str | None = None,
    device: str = "auto",
    test_views: ViewKind | None = None,
) -> dict[str, Any]:
    """Overrides of an inference or evaluate workflow for what a user may choose about the model.

    Args:
        adapter: An adapter instead of the bundle's own model.
        base_weights: The base it was trained on; by default the registry's file for the base it names.
        detector: Name or file of a box detector, ``"none"`` for no boxes; by default the bundle's own.
        device: ``"auto"`` leaves it to the bundle; else ``"cpu"`` or ``"cuda"``.
        test_views: Views of each image to average; by default the bundle's.

    Raises:
        WeightsError: Adapter, base or detector are missing or damaged.
    """
    overrides = {} if adapter is None else _adapter_overrides(adapter, base_weights)
    if detector is not None:
        overrides["detector_file"] = None if detector == "none" else str(weights.find(detector))
    if device != "auto":
        overrides["device"] = f"$torch.device({device!r})"
    if test_views is not None:
        overrides["test_views"] = test_views
    return overrides


def _adapter_overrides(adapter: Path, base_weights: Path | None) -> dict[str, Any]:
    settings, _, _ = read_adapter(adapter)
    base_file = base_weights or weights.find(str(settings["base"]))
    network = {key: value for key, value in settings.items() if key != "input_size"}
    overrides: dict[str, Any] = {
        "adapter": str(adapter),
        "input_size": settings["input_size"],
        "network_def": {
            "_target_": "amsam_med.model.build_amsam",
            **network,
            "input_size": "@input_size",
            "base_weights": str(base_file),
        },
    }
    if settings["prompt"] == "none":
        overrides["detector_file"] = None  # its network looks at no box
    return overrides


def _verified(model_file: Path) -> Path:
    for entry in weights.known().values():
        if entry.is_embedded and weights.locate(entry) == model_file.resolve():
            return weights.find(entry.name)
    return model_file
