"""Which bundles may run. A bundle's configuration is code: opening it runs whatever its author wrote.

The shipped bundles may run as they were released: their sha256 is in ``assets/bundles.json``, which
:func:`register_bundles` writes. The user must trust any other bundle once, including a shipped one that was changed:
with ``--trust-bundle``, at the prompt, or by :func:`trust`. The sha256 of its configuration is stored, so the trust
ends when the configuration changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from amsam_med.errors import ConfigError, DataError
from amsam_med.files import atomic_path, write_json
from amsam_med.folders import user_folder
from amsam_med.schema import Name, Record, Sha256, read_record
from amsam_med.weights import bundles_folder

CODE_FOLDERS = ("configs", "scripts")
"""Folders of a bundle whose files count as its configuration."""
CODE_LIMIT, FILE_LIMIT = 16 * 2**20, 500
"""The most bytes and files that a bundle's configuration may have."""

_SHIPPED = Path(__file__).resolve().parent / "assets" / "bundles.json"


class UntrustedBundleError(ConfigError):
    """The bundle to be opened is not trusted by the user yet."""


class _Shipped(Record):
    bundles: dict[Name, Sha256]


class _Trusted(Record):
    sha256: Sha256
    name: str
    since: str


class _TrustedBundles(Record):
    bundles: tuple[_Trusted, ...] = ()


def bundle_digest(root: Path) -> str:
    """sha256 over the names and contents of all files of a bundle's configuration.

    Args:
        root: The bundle's folder.

    Raises:
        DataError: The configuration cannot be read, or is too large to be one.
    """
    digest, size = hashlib.sha256(), 0
    try:
        paths = list(islice((path for folder in CODE_FOLDERS for path in _files_in(root / folder)), FILE_LIMIT + 1))
        for name, path in sorted((path.relative_to(root).as_posix(), path) for path in paths):
            size += path.stat().st_size
            if len(paths) > FILE_LIMIT or size > CODE_LIMIT or not path.is_file():
                raise DataError(
                    f"bundle {root.name}: its configuration has more than {FILE_LIMIT} files or {CODE_LIMIT:,} bytes, "
                    f"or {name} is no regular file; a configuration is a few small files"
                )
            digest.update(f"{name}\0".encode("utf-8", "surrogateescape") + hashlib.sha256(path.read_bytes()).digest())
    except OSError as error:
        raise DataError(
            f"bundle {root}: its configuration cannot be read ({error.strerror}); check the files"
        ) from None
    return digest.hexdigest()


def is_trusted(root: Path) -> bool:
    """Whether a bundle's configuration is a shipped one, or is trusted by this user.

    Raises:
        ConfigError: The list of trusted bundles is damaged.
        DataError: The configuration cannot be read.
    """
    digest = bundle_digest(root)
    return digest in _shipped().values() or any(bundle.sha256 == digest for bundle in _remembered().bundles)


def trust(root: Path) -> None:
    """Let a bundle run from now on, as long as its configuration stays as it is.

    Raises:
        ConfigError: The list of trusted bundles is damaged or cannot be written.
        DataError: The configuration cannot be read.
    """
    if is_trusted(root):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    bundles = [*_remembered().bundles, _Trusted(sha256=bundle_digest(root), name=ascii(root.name)[1:-1], since=now)]
    path = trust_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(
                _TrustedBundles(bundles=tuple(bundles)).model_dump_json(indent=2) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise ConfigError(
            f"{path}: trust in bundle {root.name} cannot be remembered ({error.strerror}); make the folder writable, "
            "or name another one with XDG_CONFIG_HOME"
        ) from None


def refuse_untrusted(root: Path) -> None:
    """Refuse a bundle that may not run.

    Raises:
        UntrustedBundleError: The bundle is neither shipped nor trusted.
        ConfigError: The list of trusted bundles is damaged.
        DataError: The configuration cannot be read.
    """
    if not is_trusted(root):
        raise UntrustedBundleError(
            f"bundle {root} is none of the shipped ones, and its configuration is code that runs when it is opened "
            f"(sha256 {bundle_digest(root)[:16]}...). If you trust its source, say so once with --trust-bundle, or "
            "amsam_med.trust.trust(folder) in Python"
        )


def register_bundles() -> None:
    """Record the configurations of the shipped bundles as they are now (for pipelines, in a checkout)."""
    digests = {path.parent.name: bundle_digest(path.parent) for path in bundles_folder().glob("*/configs")}
    write_json(_SHIPPED, {"bundles": digests}, sort_keys=True)


def trust_file() -> Path:
    """The file with the digests of the bundles that this user trusts.

    Raises:
        ConfigError: The user has no home folder.
    """
    return user_folder("settings") / "trusted-bundles.json"


def _files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir() and "__pycache__" not in path.parts)


def _shipped() -> dict[str, str]:
    return read_record(_Shipped, _SHIPPED, "reinstall amsam-med", ConfigError).bundles


def _remembered() -> _TrustedBundles:
    path = trust_file()
    if not path.exists():
        return _TrustedBundles()
    return read_record(_TrustedBundles, path, f"delete {path} and trust your bundles again", ConfigError)
