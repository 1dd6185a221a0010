"""The systems that AM-SAM is compared with, by the names that table files use."""

from __future__ import annotations

from pipelines.paper.baselines.autosam import AUTO_SAM
from pipelines.paper.baselines.deeplab import DEEPLAB
from pipelines.paper.baselines.foreign import FAST_SAM, SAM_2
from pipelines.paper.baselines.hsnet import HSNET
from pipelines.paper.baselines.interface import Baseline
from pipelines.paper.baselines.med_sa import MED_SA
from pipelines.paper.baselines.sam import SAM, SAM_WITH_BOX
from pipelines.paper.baselines.samed import SAMED
from pipelines.paper.baselines.ssp import SSP
from pipelines.paper.baselines.swin_unet import SWIN_UNET
from pipelines.paper.baselines.unet import DYN_UNET, U_NET

BASELINES: dict[str, Baseline] = {
    "sam": SAM,
    "sam-box": SAM_WITH_BOX,
    "samed": SAMED,
    "med-sa": MED_SA,
    "autosam": AUTO_SAM,
    "deeplab": DEEPLAB,
    "swin-unet": SWIN_UNET,
    "hsnet": HSNET,
    "ssp": SSP,
    "u-net": U_NET,
    "dyn-unet": DYN_UNET,
    "fastsam": FAST_SAM,
    "sam2": SAM_2,
}
"""BLO-SAM is AM-SAM's own training without box and calibration, and so no entry here; see the table files."""
