"""The options of ``segment``, ``evaluate`` and ``train``, each defined once: name, type, default and help text.

From Python, options are the fields of :class:`SegmentOptions`, :class:`EvaluateOptions` and :class:`TrainOptions`.
:mod:`amsam_med.cli.options` makes the command line's options from these fields, with the help text of each field's
:class:`Option`. Nothing heavy is imported, because the command line needs this before it loads anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from amsam_med.choices import (
    Adapted,
    BaseName,
    BoxChoice,
    CalibrationMode,
    DeviceName,
    EngineName,
    Hypergradient,
    Part,
    PromptKind,
    SliceAxis,
    ViewKind,
)
from amsam_med.domains import DEFAULT_BUNDLE, DOMAINS

FilePath: TypeAlias = str | PathLike[str]
Window: TypeAlias = tuple[float, float]
Kind: TypeAlias = Literal["word", "file", "folder", "entry"]

NO_PICTURES = "csv"
"""The word for no format: the table is always written."""


class Option(NamedTuple):
    """Help text and command-line form of a field.

    Attributes:
        help: What the option does.
        flags: As typed on the command line; by default ``--`` and the field's name.
        metavar: Placeholder of the value in the help; by default its type.
        default: What happens without the option, if the field's own default (None or a word) does not say it.
        kind: "file" and "folder" for a path; "entry" for an entry of the bundle's ``train.yaml``, which decides unless
            the field has a value.
        least: The smallest number.
        most: The largest.
    """

    help: str
    flags: str = ""
    metavar: str = ""
    default: str = ""
    kind: Kind = "word"
    least: int | None = None
    most: int | None = None


Device: TypeAlias = Annotated[DeviceName, Option("Where the network computes; auto takes a GPU if there is one.")]
Detector: TypeAlias = Annotated[
    FilePath | None, Option("Finds the boxes.", metavar="NAME|FILE|none", default="the bundle's")
]

_NAMES = ", ".join(f"{domain.bundle} for {domain.things}" for domain in DOMAINS)
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it computes; ``overrides`` are further entries of the bundle's configuration, by id."""

    bundle: Annotated[
        str | None,
        Option(
            f"{_NAMES}, or the folder of your own MONAI bundle.",
            metavar="NAME|PATH",
            default=f"the adapter's, else {DEFAULT_BUNDLE}",
        ),
    ] = None
    adapter: Annotated[
        FilePath | None,
        Option("An adapter that `amsam train` wrote, instead of the bundle's own model.", kind="file"),
    ] = None
    base_weights: Annotated[
        FilePath | None,
        Option("The base that the adapter was trained on.", default="the one it names", kind="file"),
    ] = None
    detector: Detector = None
    test_views: Annotated[
        ViewKind | None,
        Option(
            "Average over the image and its mirror image (twice the time), or all eight flips and turns (eight times).",
            default="the bundle's, which is none",
        ),
    ] = None
    device: Device = "auto"
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmentOptions(ModelOptions):
    """What ``amsam segment`` lets a user choose."""

    formats: Annotated[
        tuple[str, ...],
        Option(
            "What to write: png (masks), overlay (outline and box over the image), contour (GeoJSON), nifti, "
            f"dicom-seg, dicom-sr (both of DICOM images), {NO_PICTURES} (the table alone, which is always written).",
            "--format",
            metavar="NAMES",
        ),
    ] = ("png", "overlay")
    batch_size: Annotated[
        int,
        Option(
            "Pictures in hand at once, and on a CPU the most that are computed side by side; results do not depend on "
            "it.",
            least=1,
        ),
    ] = 8
    overwrite: Annotated[bool, Option("Do again what an earlier run into this folder has done.")] = False
    slice_axis: Annotated[SliceAxis, Option("Array axis along which NIfTI volumes are cut.", default="the third")] = (
        "auto"
    )
    window: Annotated[
        Window | None,
        Option("Grey values to show, in CT for example 40 400.", metavar="CENTRE WIDTH", default="the file's own"),
    ] = None
    has_report: Annotated[bool, Option("Write report.html.", "--report/--no-report")] = True
    keeps_identifiers: Annotated[
        bool,
        Option(
            "Use paths as they are, also where they hold the name, an identifier or the date of birth of a DICOM "
            "patient.",
            "--keep-identifiers",
        ),
    ] = False
    deidentifies: Annotated[
        bool,
        Option(
            "Strip dicom-seg and dicom-sr by the DICOM standard's basic profile; new UIDs, the same in all your runs "
            "into OUT, and none of the old ones in names.",
            "--deidentify",
        ),
    ] = False
    stores: Annotated[bool, Option("Send dicom-seg and dicom-sr to the DICOMweb server of the image.", "--store")] = (
        False
    )
    engine: Annotated[EngineName, Option("ray: a worker process on each CPU of a Ray cluster; the same results.")] = (
        "local"
    )
    address: Annotated[
        str | None,
        Option(
            "The Ray cluster to use.",
            metavar="auto|HOST:PORT",
            default="one of this machine alone, for this run",
        ),
    ] = None


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """What ``amsam evaluate`` lets a user choose."""

    part: Annotated[Part | None, Option("Part of the set.", default="test, if any")] = None


@dataclass(frozen=True, kw_only=True)
class _TrainingChoices:
    """Fields of :class:`TrainOptions` that are given by name; those of kind "entry" leave it to the bundle if None."""

    shots: Annotated[
        int | Literal["all"] | None,
        Option("How many examples to draw; the paper has 4, 8 and 16.", metavar="K|all", kind="entry", least=2),
    ] = None
    seed: Annotated[int | None, Option("Of the draw and the training.", kind="entry", least=0, most=_LARGEST_SEED)] = (
        None
    )
    base: Annotated[
        BaseName | None,
        Option(
            "tiny and tiny-general (which saw no dermoscopy) are embedded; `amsam weights get` fetches SAM's own.",
            kind="entry",
        ),
    ] = None
    base_weights: Annotated[
        FilePath | None, Option("Weights of the base.", default="the ones of that name", kind="file")
    ] = None
    detector: Detector = None
    prompt: Annotated[
        PromptKind | None,
        Option(
            "What of the box the network sees; +point adds its centre; own and none need no detector: with own the "
            "network tries boxes itself, for objects near the middle of the picture; with none it sees none.",
            kind="entry",
        ),
    ] = None
    calibration: Annotated[
        CalibrationMode | None,
        Option(
            "Of the masks, by Hadamard products (Eq. 9-12); the paper's only rescales logits, learned trains the "
            "fusion.",
            kind="entry",
        ),
    ] = None
    hypergradient: Annotated[
        Hypergradient | None,
        Option(
            "How the upper level (Eq. 7-8) looks through the lower one: not at all (fastest), or through one step of "
            "it.",
            kind="entry",
        ),
    ] = None
    epochs: Annotated[int | None, Option("Passes over D1.", kind="entry", least=1)] = None
    batch_size: Annotated[int | None, Option("Of both levels; the paper has 1.", kind="entry", least=1)] = None
    views: Annotated[
        ViewKind | None,
        Option(
            "What augments: the eight flips and rotations, the left-right mirror alone (people), or nothing.",
            kind="entry",
        ),
    ] = None
    adapts: Annotated[
        Adapted | None,
        Option(
            "What is adapted: the mask decoder, as in the paper; also the encoder's neck, its two last convolutions; "
            "or also the encoder's last stage.",
            kind="entry",
        ),
    ] = None
    halves: Annotated[
        bool | None,
        Option(
            "Cut the examples into D1 and D2, as in the paper, or give both levels all of them.",
            "--halves/--all-examples",
            kind="entry",
        ),
    ] = None
    pull: Annotated[
        float | None,
        Option(
            "Towards the base: this many times the squared distance is added to the loss; try 0.1 where the base knows "
            "such objects already.",
            kind="entry",
            least=0,
        ),
    ] = None
    box_choice: Annotated[
        BoxChoice | None,
        Option(
            "The detector's boxes vote on one, of the image and its mirror image, which it must be sure of; or its "
            "surest box counts as it is, as in the paper.",
            kind="entry",
        ),
    ] = None
    squared_pred: Annotated[
        bool | None,
        Option(
            "Square the terms of the Dice loss's denominator, as the code of the paper's ancestors does, or leave them "
            "as they are; the paper does not say.",
            "--squared-dice/--plain-dice",
            kind="entry",
        ),
    ] = None
    paper: Annotated[bool, Option("The paper's settings instead of ours; see above.")] = False
    cache_dir: Annotated[FilePath | None, Option("Keep embeddings there between runs.", "--cache", kind="folder")] = (
        None
    )
    input_size: Annotated[int | None, Option("Model input in pixels.", kind="entry", least=16, most=2048)] = None
    device: Device = "auto"


@dataclass(frozen=True)
class TrainOptions(_TrainingChoices):
    """What ``amsam train`` lets a user choose.

    ``overrides`` are further entries of the bundle's training configuration, by id; ``panel_images`` is how many images
    of D2 the picture of the finished run shows.
    """

    bundle: Annotated[
        str, Option("Whose configuration to run; the defaults below are its own.", metavar="NAME|PATH")
    ] = DEFAULT_BUNDLE
    overrides: Mapping[str, Any] = field(default_factory=dict)
    resume: Annotated[bool, Option("Continue an interrupted run in the same folder.")] = False
    panel_images: int = 4


class Described(NamedTuple):
    """A field that is an option.

    Attributes:
        name: Of the field.
        type: Of its values, without None.
        default: Its own.
        option: What it means. Its flags are there.
    """

    name: str
    type: Any
    default: Any
    option: Option

    @property
    def flags(self) -> str:
        """As typed: ``--name``, or ``--name/--other`` for a switch of two words."""
        return self.option.flags or f"--{self.name.replace('_', '-')}"

    def words(self, value: Any) -> list[str]:
        """A value as it is typed; none for what need not be."""
        on, _, off = self.flags.partition("/")
        if isinstance(value, bool):
            return [] if value == self.default else [on if value else off]
        if value is None:
            return []
        if self.name == "formats":
            return [on, ",".join(value) or NO_PICTURES]
        return [on, *map(str, value)] if isinstance(value, tuple) else [on, str(value)]


def described(options: type) -> tuple[Described, ...]:
    """The fields of a class of options that the command line has, in the order of its help."""
    hints = get_type_hints(options, include_extras=True)
    found: list[Described] = []
    for one in fields(options):
        hint, *about = get_args(hints[one.name]) if get_origin(hints[one.name]) is Annotated else (hints[one.name],)
        found += [Described(one.name, _without_none(hint), one.default, given) for given in about]
    return tuple(found)


def _without_none(hint: Any) -> Any:
    inner = tuple(one for one in get_args(hint) if one is not type(None))
    return inner[0] if len(inner) == 1 and type(None) in get_args(hint) else hint


def as_words(options: ModelOptions) -> list[str]:
    """Options as they would be typed, so that the same command can be given again."""
    return [word for one in described(type(options)) for word in one.words(getattr(options, one.name))]
