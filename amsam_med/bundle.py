"""Opening a MONAI bundle, whose configuration wires all parts for the command line, ``monai.bundle`` and Python.

A bundle's configuration is code: it may contain Python expressions, which run when it is opened. So only bundles that
:mod:`amsam_med.trust` allows are opened. Values from outside (options, paths, an adapter's header) are set as Python
values and never as configuration text: a path that starts with ``$`` remains a path.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar, overload

import torch
import yaml
from monai.bundle.config_parser import ConfigParser
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms.compose import Compose

from amsam_med import weights
from amsam_med.boxes import BoxDetector
from amsam_med.bundle_settings import as_configured, paper_settings
from amsam_med.checkpoint import load_adapter, load_model, read_adapter
from amsam_med.choices import DETECTORLESS
from amsam_med.data.readers import FilePath
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.errors import AmsamError, ConfigError, DataError, WeightsError
from amsam_med.infer import PromptInferer
from amsam_med.machine import causes, is_out_of_memory
from amsam_med.model import AmSam
from amsam_med.options import Described, TrainOptions, described
from amsam_med.trust import bundle_digest, refuse_untrusted
from amsam_med.views import ViewKind
from amsam_med.weights import locate_bundle, shipped_bundles

T = TypeVar("T")
Workflow = Literal["inference", "evaluate", "train"]

CONFIG_FILES: dict[str, tuple[str, ...]] = {
    "inference": ("inference.yaml",),
    "evaluate": ("inference.yaml", "evaluate.yaml"),
    "train": ("train.yaml",),
}
"""The files of ``configs/`` that make up each workflow; a later one overrides the ones before it."""


_TARGET = "_target_"


@dataclass(frozen=True)
class Expression:
    """An override that is configuration text; only for text of this package, never for values from outside.

    Attributes:
        text: A reference (``"@scores"``), an expression (``"$[@scores]"``), or a part with its ``_target_``.
    """

    text: str | Mapping[str, Any]


@dataclass(frozen=True)
class Component:
    """An override that builds a part instead of the configuration's own.

    Attributes:
        target: Dotted name of a class or function of ours.
        arguments: Its arguments by name: values as for overrides.
    """

    target: str
    arguments: Mapping[str, Any]


class _Value:
    """A Python value as a component that is built as itself, so that nothing in it is parsed as configuration."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value

    def __deepcopy__(self, memo: Any) -> _Value:
        return self


class BundleParser(ConfigParser):
    """A bundle's configuration, into which values can be set.

    It lets an ``AmsamError`` through, where MONAI would bury it in RuntimeErrors.

    Attributes:
        foreign_name: Name of a bundle that is not shipped: errors in it are reported as its author's.
    """

    foreign_name = ""

    def set_value(self, id: str, value: Any) -> None:
        """Replace an entry by a Python value, an :class:`Expression` or a :class:`Component`."""
        self[id] = _as_configuration(value)

    def as_written(self, id: str) -> Any:
        """An entry as the configuration has it, before it is built, with values as they were set; None without one."""
        return _unwrapped(self.get(id))

    def get_parsed_content(self, id: str = "", **kwargs: Any) -> Any:
        """Build a part and all that it refers to.

        Raises:
            AmsamError: What the part itself says is wrong; or a part of a bundle that is not shipped cannot be built.
        """
        try:
            return super().get_parsed_content(id, **kwargs)
        except Exception as error:
            chain = list(causes(error))
            if own := next((cause for cause in chain if isinstance(cause, AmsamError)), None):
                raise own from None
            if not self.foreign_name or any(map(is_out_of_memory, chain)):
                raise
            reason = " ".join(f"{type(chain[-1]).__name__}: {chain[-1]}".split())[:300]
            raise ConfigError(
                f"bundle {self.foreign_name}: its part {id!r} cannot be built ({reason}); mend its configuration, or "
                "compare it with that of a shipped bundle"
            ) from error


class Part(Generic[T]):
    """A part of an opened workflow as an attribute: built at its first use, and kept.

    Args:
        id: Its entry in the configuration.
    """

    def __init__(self, id: str) -> None:
        self._id = id

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, workflow: None, owner: type) -> Self: ...

    @overload
    def __get__(self, workflow: OpenedWorkflow, owner: type) -> T: ...

    def __get__(self, workflow: OpenedWorkflow | None, owner: type) -> Self | T:
        if workflow is None:
            return self
        part: T = workflow.parser.get_parsed_content(self._id)
        workflow.__dict__[self._name] = part  # Python finds it there before this descriptor from now on
        return part


class OpenedWorkflow:
    """A workflow of a bundle with its parts as typed attributes, so that no other code gets them by text.

    Args:
        parser: Of :func:`open_bundle`.

    Attributes:
        device: Where the network computes.
    """

    device = Part[torch.device]("device")

    def __init__(self, parser: BundleParser) -> None:
        self.parser = parser

    def initialize(self) -> None:
        """Run the bundle's ``initialize`` entry, if it has one; the shipped bundles seed random numbers there."""
        if "initialize" in self.parser:
            self.parser.get_parsed_content("initialize")


class InferenceWorkflow(OpenedWorkflow):
    """An opened ``inference`` workflow.

    Attributes:
        network: In evaluation mode, with its weights, on its device.
        inferer: Finds boxes and calls the network.
        preprocessing: From ``{"image": ...}`` to what the network takes.
        postprocessing: From logits to the mask in the image's own frame.
    """

    network = Part[AmSam]("network")
    inferer = Part[PromptInferer]("inferer")
    preprocessing = Part[Compose]("preprocessing")
    postprocessing = Part[Compose]("postprocessing")

    def weight_files(self) -> dict[str, Path | None]:
        """The files of weights by role: model, or base and adapter; and detector. None if a role is not used."""
        of_network = {"model": "model_file"}
        if self._file("adapter") is not None:
            of_network = {"base": "network_def::base_weights", "adapter": "adapter"}
        return {role: self._file(id) for role, id in {**of_network, "detector": "detector_file"}.items()}

    def _file(self, id: str) -> Path | None:
        file = self.parser.get_parsed_content(id) if id in self.parser else None
        return Path(file) if file else None


class EvaluateWorkflow(InferenceWorkflow):
    """An opened ``evaluate`` workflow: that of inference, with labels and scores.

    Attributes:
        data: The images and their masks.
        part: Of the data set; None where it has no parts.
        evaluator: What runs.
        scores: The handler that keeps them, a :class:`amsam_med.evaluate.ScoreHandler`.
    """

    data = Part[list[dict[str, str]]]("data")
    part = Part[str | None]("part")
    evaluator = Part[SupervisedEvaluator]("evaluator")
    scores = Part[Any]("scores")


class TrainWorkflow(OpenedWorkflow):
    """An opened ``train`` workflow.

    Attributes:
        network: The one in training.
        detector: Finds the boxes; None to take the labels'.
        levels: The examples D1 and D2.
        trainer: What runs.
        recorder: Keeps the record of the run, a :class:`amsam_med.train.RunRecorder`.
        base_file: The base's weights.
    """

    network = Part[AmSam]("core")
    detector = Part[BoxDetector | None]("detector")
    levels = Part[tuple[list[dict[str, str]], list[dict[str, str]]]]("levels")
    trainer = Part[SupervisedTrainer]("train::trainer")
    recorder = Part[Any]("train::recorder")
    base_file = Part[str]("base_file")


def default_bundle(adapter: FilePath | None = None) -> str:
    """The shipped bundle to use if none is named: the one an adapter was trained with, else the one for lesions.

    An adapter cannot choose a bundle that is not shipped; the user must name it.

    Raises:
        WeightsError: The adapter is missing or damaged, or was trained with a bundle that is not shipped.
    """
    trained_with = None if adapter is None else read_adapter(Path(adapter))[1].get("bundle")
    if trained_with is None:
        return DEFAULT_BUNDLE
    if trained_with not in shipped_bundles():
        name = adapter and Path(adapter).name
        raise WeightsError(
            f"{name} was trained with bundle {trained_with!r}, which is not one of the shipped "
            f"({', '.join(shipped_bundles())}); if you have that bundle and trust it, give its folder with --bundle"
        )
    return str(trained_with)


def open_bundle(
    name_or_path: str | Path, workflow: Workflow, overrides: Mapping[str, Any] | None = None
) -> BundleParser:
    """Read a bundle's configuration; parts are built when they are first used.

    Args:
        name_or_path: See :func:`locate_bundle`.
        workflow: Which of the bundle's wiring diagrams.
        overrides: Python values that replace the configuration's, by id (``"train::trainer::max_epochs"``). A text is
            that text, whatever it begins with; :class:`Expression` is for text of the configuration's own kind.

    Returns:
        A parser; ``get_parsed_content(id)`` builds a part and all that it refers to. :class:`InferenceWorkflow`,
        :class:`EvaluateWorkflow` and :class:`TrainWorkflow` have the parts by name and type.

    Raises:
        DataError: There is no such bundle, or its configuration cannot be read.
        ConfigError: The bundle is not trusted, or an override names an entry that the configuration does not have.
        WeightsError: The adapter among the overrides belongs to another bundle or detector.
    """
    root = locate_bundle(name_or_path)
    refuse_untrusted(root)
    parser = BundleParser()
    parser.foreign_name = "" if _is_shipped(root) else root.name
    try:
        # MONAI only warns of an entry that stands twice.
        with warnings.catch_warnings(action="error", category=UserWarning):
            parser.read_meta(str(root / "configs" / "metadata.json"))
            parser.read_config(config_files(root, workflow))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, UserWarning, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"bundle {root}: its configuration cannot be read ({reason}); {' and '.join(CONFIG_FILES[workflow])} and "
            "metadata.json in configs/ each hold names and values"
        ) from None
    for key, value in {"bundle_root": str(root), **(overrides or {})}.items():
        if key not in parser:
            raise ConfigError(
                f"bundle {root.name} has no entry {key!r} in its {workflow} configuration; check the name"
            )
        parser.set_value(key, value)
    if adapter := (overrides or {}).get("adapter"):
        name = Path(adapter).name
        settings, record, _ = read_adapter(Path(adapter))
        _refuse_other_bundle(name, record, root)
        if settings["prompt"] not in DETECTORLESS:
            _refuse_other_detector(name, record, parser)
    return parser


def config_files(root: Path, workflow: Workflow) -> list[str]:
    """Paths of the configuration files of a workflow."""
    return [str(root / "configs" / name) for name in CONFIG_FILES[workflow]]


def with_weights(network: AmSam, model_file: str | Path, adapter_file: str | Path | None = None) -> AmSam:
    """Load weights into a network for inference: from a bundle's model, or from an adapter on its base.

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
        load_model(network, weights.verified(Path(model_file)))
    else:
        load_adapter(network, Path(adapter_file))
    return network.eval()


def model_overrides(
    adapter: FilePath | None = None,
    base_weights: FilePath | None = None,
    detector: FilePath | None = None,
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
    overrides = {} if adapter is None else _adapter_overrides(Path(adapter), base_weights)
    if detector is not None:
        overrides["detector_file"] = None if detector == "none" else str(weights.find(str(detector)))
    if device != "auto":
        overrides["device"] = torch.device(device)
    if test_views is not None:
        overrides["test_views"] = test_views
    return overrides


def training_overrides(options: TrainOptions) -> dict[str, Any]:
    """Overrides of a train workflow for the options that a user has given; the bundle decides the others.

    A network of prompt ``"own"`` or ``"none"`` is trained without the detector.

    Raises:
        ConfigError: There is to be no detector for a network that looks at boxes, or an option contradicts ``paper``.
        DataError: There is no such bundle, or its configuration cannot be read.
        WeightsError: The detector is missing or damaged.
    """
    of_bundle = [one for one in described(type(options)) if one.option.kind == "entry"]
    entries = {one.name: value for one in of_bundle if (value := getattr(options, one.name)) is not None}
    if options.paper:
        settings = paper_settings(options.bundle)
        _refuse_contradictions({one.name: one for one in of_bundle}, entries, settings)
        entries |= settings
    if entries.get("shots") == "all":
        entries["shots"] = None
    for name, path in (("cache_dir", options.cache_dir), ("base_file", options.base_weights)):
        if path is not None:
            entries[name] = str(path)
    if options.device != "auto":
        entries["device"] = torch.device(options.device)
    overrides = {**options.overrides, **entries}
    if "detector_file" not in overrides:
        overrides |= _detector_of_training(options, overrides.get("prompt"))
    return overrides


def _detector_of_training(options: TrainOptions, prompt: Any) -> dict[str, Any]:
    """The detector as an override, if it is not the bundle's; no detector for a network that takes no box."""
    configured = as_configured(options.bundle, "train.yaml")
    prompt = prompt or configured.get("prompt")
    if prompt in DETECTORLESS:
        return {"detector_file": None}
    if options.detector == "none" or (options.detector is None and configured.get("detector_file", "") is None):
        raise ConfigError(
            f"--prompt {prompt} needs a detector: without one, training would see boxes that `amsam segment` has not; "
            "use --prompt own or none (from Python prompt='own'), or a detector of your own (amsam detector train)"
        )
    return {} if options.detector is None else {"detector_file": str(weights.find(str(options.detector)))}


def _refuse_contradictions(known: Mapping[str, Described], given: Mapping[str, Any], paper: Mapping[str, Any]) -> None:
    """Refuse options given beside ``paper`` that say something else."""
    if names := [name for name in paper if name in given and given[name] != paper[name]]:
        got, means = (", ".join(" ".join(known[name].words(one[name])) for name in names) for one in (given, paper))
        raise ConfigError(f"--paper means {means}; got {got}. Leave out these options, or --paper")


def _adapter_overrides(adapter: Path, base_weights: FilePath | None) -> dict[str, Any]:
    settings, record, _ = read_adapter(adapter)
    base_file = base_weights or weights.find(str(settings["base"]))
    network = {**settings, "input_size": Expression("@input_size"), "base_weights": str(base_file)}
    overrides = {
        "adapter": str(adapter),
        "input_size": settings["input_size"],
        "network_def": Component("amsam_med.model.build_amsam", network),
    }
    if "box_choice" in record:
        overrides["box_choice"] = record["box_choice"]
    if settings["prompt"] in DETECTORLESS:
        overrides["detector_file"] = None
    return overrides


def _refuse_other_bundle(adapter: str, record: Mapping[str, Any], root: Path) -> None:
    """Refuse an adapter that was trained with another bundle: compares names of shipped ones, contents of others."""
    trained_with = record.get("bundle")
    if trained_with is None or (_is_shipped(root) and trained_with == root.name):
        return
    if trained_with in shipped_bundles() and trained_with != root.name:
        raise WeightsError(
            f"{adapter} was trained with bundle {trained_with}, not with {root.name}; leave out --bundle, or give "
            f"--bundle {trained_with}"
        )
    expected, digest = record.get("bundle_sha256"), bundle_digest(root)
    if expected == digest or (expected is None and trained_with == root.name):
        return
    configured = "" if expected is None else f" of configuration {expected[:16]}..."
    raise WeightsError(
        f"{adapter} was trained with bundle {trained_with!r}{configured}, not with {root.name} as it is now "
        f"({digest[:16]}...); give the folder of the bundle that it was trained with as --bundle, or train it again"
    )


def _refuse_other_detector(adapter: str, record: Mapping[str, Any], parser: BundleParser) -> None:
    """Refuse an adapter trained with another detector, on whose boxes it relies. Older adapters do not name theirs."""
    trained_with = record.get("detector_sha256")
    if trained_with is None:
        return
    file: str | None = parser.get_parsed_content("detector_file")
    if file and not Path(file).is_file():
        return  # loading it says so
    in_use = weights.sha256(Path(file)) if file else None
    if in_use != trained_with:
        found = f"with {Path(file).name} of sha256 {in_use[:16]}..." if file and in_use else "without one"
        raise WeightsError(
            f"{adapter} was trained with the boxes of the detector of sha256 {trained_with[:16]}... and is used "
            f"{found}; give the file of its detector as --detector, or train the adapter again with this one"
        )


def _is_shipped(root: Path) -> bool:
    return root.parent == weights.bundles_folder().resolve()


def _as_configuration(value: Any) -> Any:
    if isinstance(value, Expression):
        return value.text if isinstance(value.text, str) else dict(value.text)
    if isinstance(value, Component):
        return {_TARGET: value.target, **{name: _as_configuration(one) for name, one in value.arguments.items()}}
    is_plain = value is None or isinstance(value, bool | int | float)
    return value if is_plain else {_TARGET: _Value(value)}


def _unwrapped(config: Any) -> Any:
    if isinstance(config, dict):
        target = config.get(_TARGET)
        return target.value if isinstance(target, _Value) else {key: _unwrapped(one) for key, one in config.items()}
    return [_unwrapped(one) for one in config] if isinstance(config, list) else config
