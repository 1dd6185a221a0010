"""The words that an option, an entry of a configuration or an argument may be, each set of them once.

Nothing is imported here but ``typing``: the command line asks for these words before it loads anything. The module that
acts on a word hands its type on under its own name, and says what each word does.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

# The network; see amsam_med.model.build.build_amsam.
BaseName: TypeAlias = Literal["tiny", "tiny-general", "vit_b", "vit_l", "vit_h"]
"""Names of bases."""
PromptKind: TypeAlias = Literal["box", "box+point", "own", "none"]
"""What of a box the prompt encoder sees; with ``own`` boxes that the network makes itself."""
DETECTORLESS: tuple[PromptKind, ...] = ("own", "none")
"""With these a network needs no detector, in training as in use."""
CalibrationMode: TypeAlias = Literal["none", "paper", "learned"]
"""How masks are calibrated (Eq. 9-12)."""
CalibrationScope: TypeAlias = Literal["image", "batch"]
"""Over which masks Eq. 9-12 run: one image's, or those of a batch, as the paper's letter has it."""
Adapted: TypeAlias = Literal["decoder", "neck", "stage"]
"""What few-shot training adapts."""

# Training and boxes.
Hypergradient: TypeAlias = Literal["first-order", "unrolled", "exact"]
"""How the upper level (Eq. 7-8) looks through the lower one; see amsam_med.learn.hypergradient."""
BoxChoice: TypeAlias = Literal["vote", "surest"]
"""How a detector comes to its one box: the vote of many, or the most confident one."""
ViewKind: TypeAlias = Literal["all", "mirror", "none"]
"""Which views augment or are averaged: all eight, the image and its left-right mirror, or the image alone."""

# Images and results.
Part: TypeAlias = Literal["train", "val", "test"]
"""Parts of a data set; see amsam_med.data.datalists."""
SliceAxis: TypeAlias = Literal["auto", 0, 1, 2]
"""Array axis along which a volume is cut; see amsam_med.data.nifti."""
FormatName: TypeAlias = Literal["png", "overlay", "contour", "nifti", "dicom-seg", "dicom-sr"]
"""Result files; see amsam_med.segment.formats.FORMATS."""

# Where it runs.
DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]
"""``auto`` leaves it to the bundle."""
EngineName: TypeAlias = Literal["local", "ray"]
"""Where files pass the stages of ``amsam segment``: in this process, or in those of a Ray cluster."""
