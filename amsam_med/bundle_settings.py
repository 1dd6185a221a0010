"""The plain values of a bundle's configuration files, read as data: nothing in them is run, so no trust is needed."""

from __future__ import annotations

from typing import Any

from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.errors import DataError


def as_configured(bundle: str, name: str) -> dict[str, Any]:
    """The plain values of one of a bundle's configuration files, None for null, without references and expressions.

    Args:
        bundle: Name of a shipped bundle, or folder of any.
        name: Of the file in ``configs/``.

    Raises:
        DataError: There is no such bundle, it has no such file, or the file cannot be read.
    """
    # Here and not above: the command line imports this module before it knows whether anybody asks for a bundle.
    import yaml

    from amsam_med.weights import locate_bundle

    file = locate_bundle(bundle) / "configs" / name
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"bundle {bundle} has no configs/{name}; copy it from a shipped bundle") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({' '.join(str(error).split())[:200]}); mend it") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no names with values; compare it with that of a shipped bundle")
    return {
        key: value
        for key, value in content.items()
        if value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and not value.startswith(("$", "@", "%")))
    }


def paper_settings(bundle: str = DEFAULT_BUNDLE) -> dict[str, Any]:
    """What ``amsam train --paper`` sets: entries of ``train.yaml`` by name.

    Raises:
        DataError: The bundle has no ``paper.yaml``.
    """
    return as_configured(bundle, "paper.yaml")
