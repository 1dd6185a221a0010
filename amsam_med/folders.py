"""The user's folders for settings and downloads on each platform; XDG variables are respected on all of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from amsam_med.errors import ConfigError


class _Places(NamedTuple):
    """The variable of XDG, the variable of Windows, and the folders in the home on Windows, macOS and others."""

    xdg: str
    windows_variable: str
    windows: str
    mac: str
    other: str


_PLACES = {
    "cache": _Places("XDG_CACHE_HOME", "LOCALAPPDATA", "AppData/Local", "Library/Caches", ".cache"),
    "settings": _Places("XDG_CONFIG_HOME", "APPDATA", "AppData/Roaming", "Library/Application Support", ".config"),
}


def user_folder(kind: Literal["cache", "settings"]) -> Path:
    """This project's folder for downloads or for settings; it may not exist yet.

    Raises:
        ConfigError: The user has no home folder, and no variable names another one.
    """
    places = _PLACES[kind]
    windows = os.environ.get(places.windows_variable) if sys.platform == "win32" else None
    if named := os.environ.get(places.xdg) or windows:
        return Path(named) / "amsam-med"
    in_home = {"win32": places.windows, "darwin": places.mac}.get(sys.platform, places.other)
    try:
        return Path.home() / in_home / "amsam-med"
    except RuntimeError:
        raise ConfigError(
            f"there is no home folder; name one in the environment variable HOME, or one for this in {places.xdg}"
        ) from None
