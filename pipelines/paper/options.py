"""Options that the commands for the paper's tables and figures share."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from amsam_med import weights
from amsam_med.model.build import COMPACT_BASES, VIT_SIZES


def common_options() -> argparse.ArgumentParser:
    """A parent parser: where the results lie, what they start from, and on which machine."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of results.sqlite")
    parser.add_argument(
        "--base",
        default="tiny-general",
        choices=[*COMPACT_BASES, *VIT_SIZES],
        help="what every SAM-based row starts from; vit_* are SAM's own (default: %(default)s)",
    )
    parser.add_argument("--base-weights", type=Path, help="the base's file (default: the one known by its name)")
    parser.add_argument("--weights-dir", type=Path, help="folder of SAM's, FastSAM's and SAM 2's files")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="torch's name (here: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU (default: %(default)s)")
    return parser


def base_file(options: argparse.Namespace) -> Path:
    """The file of the base that :func:`common_options` name.

    Raises:
        WeightsError: There is none.
    """
    given: Path | None = options.base_weights
    return given or weights.find(options.base, options.weights_dir)
