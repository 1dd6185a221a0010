"""The allowed values of options, configuration entries and arguments, each set defined once.

Only ``typing`` is imported, because the command line needs these values before it loads anything else. The module that
uses a value re-exports its type and documents what each value does.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

# The network; see amsam_med.model.build.build_amsam.
BaseName: TypeAlias = Literal["tiny", "tiny-general", "vit_b", "vit_l", "vit_h"]
"""Names of bases."""
PromptKind: TypeAlias = Literal["box", "box+point", "own", "none"]
"""How a box is given to the prompt encoder; with ``own``, the network makes boxes itself."""
DETECTORLESS: tuple[PromptKind, ...] = ("own", "none")
"""Prompts with which a network needs no detector, in training and inference."""
CalibrationMode: TypeAlias = Literal["none", "paper", "learned"]
"""How masks are calibrated (Eq. 9-12)."""
CalibrationScope: TypeAlias = Literal["image", "batch"]
"""Whether Eq. 9-12 average over one image or over a batch, as printed in the paper."""
Adapted: TypeAlias = Literal["decoder", "neck", "stage"]
"""What few-shot training adapts."""

# Training and boxes.
Hypergradient: TypeAlias = Literal["first-order", "unrolled", "exact"]
"""How the upper level (Eq. 7-8) looks through the lower one; see amsam_med.learn.hypergradient."""
BoxChoice: TypeAlias = Literal["vote", "surest"]
"""How a detector chooses its box: by box voting, or the most confident one."""
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
"""Where ``amsam segment`` computes: in this process, or in those of a Ray cluster."""
