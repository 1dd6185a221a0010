"""The app folder for MONAI Label's own `start_server --app pipelines/monailabel`; `amsam label` starts the same app."""

from amsam_med.label.server import import_monailabel

import_monailabel()

from amsam_med.label.app import AmSamLabelApp as AmSamLabelApp  # noqa: E402  # MONAI Label looks for such a class
