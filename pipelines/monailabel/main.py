"""The app folder for `monailabel start_server --app pipelines/monailabel`; `amsam label` does the same."""

from amsam_med.label.server import import_monailabel

import_monailabel()

from amsam_med.label.app import AmSamLabelApp as AmSamLabelApp  # noqa: E402  # MONAI Label looks for such a class here
