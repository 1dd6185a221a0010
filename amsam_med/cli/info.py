"""``amsam info``: what a bug report needs to say."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from amsam_med import __version__
from amsam_med import weights as registry

_PACKAGES = (
    "torch",
    "torchvision",
    "monai",
    "ultralytics",
    "timm",
    "segment-anything",
    "numpy",
    "pydicom",
    "highdicom",
    "monailabel",
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(as_json: bool) -> None:
    """Show versions, devices, threads, weights with their sha256 status, folders and bundles."""
    facts = {
        "versions": _versions(),
        "hardware": _hardware(),
        "weights": _weights(),
        "folders": {"weights": str(registry.cache_folder()), "bundles": str(registry.bundles_folder())},
        "bundles": _bundles(registry.bundles_folder()),
    }
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))


def _versions() -> dict[str, str | None]:
    own = {"amsam-med": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return own | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    import torch  # here, so that the command line's help does not wait for it

    devices = {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    devices["cpu"] = platform.processor() or platform.machine()
    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "devices": devices}


def _weights() -> dict[str, dict[str, str | None]]:
    return {
        weights.name: {"state": str(state), "file": str(path) if path else None}
        for weights, path, state in registry.verify()
    }


def _bundles(folder: Path) -> dict[str, str]:
    metadata = sorted(folder.glob("*/configs/metadata.json"))
    return {file.parts[-3]: json.loads(file.read_text(encoding="utf-8")).get("version", "?") for file in metadata}


def _lines(facts: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for topic, entries in facts.items():
        lines.append(f"{topic}:")
        lines += [f"  {name:16} {_text(value)}" for name, value in entries.items()] or ["  none found"]
    return lines


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items() if entry is not None)
    return "not installed" if value is None else str(value)
