"""Readers of damaged files return a result or raise an error of this package, quickly and in little memory."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bounded import run_bounded

EXAMPLES = int(os.environ.get("AMSAM_FUZZ_EXAMPLES", "150"))
"""Damaged files to read; more where the environment says so."""


def test_no_damage_leads_to_a_crash_or_a_hang(tmp_path: Path) -> None:
    imports = "from pathlib import Path\nfrom tests.data.fuzz_readers import fuzz"
    code = "fuzz(Path(sys.argv[1]), int(sys.argv[2]))"
    seconds = 300 + EXAMPLES
    ran = run_bounded(imports, code, tmp_path, str(EXAMPLES), megabytes=1500, seconds=seconds)
    assert ran.megabytes < 1000
