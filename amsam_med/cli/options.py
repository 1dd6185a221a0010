"""Options that several sub-commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from amsam_med.errors import DataError

_CONFIGURED = "amsam_med.cli.options.configured"
"""Where a click context keeps a bundle's values while it explains its options."""
_file = click.Path(exists=True, dir_okay=False, path_type=Path)

labelled_data = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Labelled images: a folder with images/ and masks/, ISIC 2018, Human (Vikram) or TikTok.",
)
adapter = click.option(
    "--adapter", type=_file, help="An adapter that `amsam train` wrote, instead of the bundle's own model."
)
adapters_base = click.option(
    "--base-weights", type=_file, help="The base that the adapter was trained on.  [default: the one it names]"
)
detector = click.option("--detector", metavar="NAME|FILE|none", help="Finds the boxes.  [default: the bundle's]")
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
test_views = click.option(
    "--test-views",
    type=click.Choice(["none", "mirror", "all"]),  # of amsam_med.views.ViewKind
    help="Average over the image and its mirror image (twice the time), or all eight flips and turns (eight times).  "
    "[default: the bundle's, which is none]",
)


class BundleOption(click.Option):
    """An entry of the bundle's ``train.yaml`` as an option: without it the bundle decides, and ``--help`` says how.

    A ``--bundle`` that stands before ``--help`` is the one whose values are shown.
    """

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Names and help, with the bundle's value."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        if _CONFIGURED not in ctx.meta:  # read once for all options
            with suppress(DataError):  # no such bundle; the verb itself says so
                ctx.meta[_CONFIGURED] = as_configured(ctx.params.get("bundle") or "amsam_isic", "train.yaml")
        value = ctx.meta.setdefault(_CONFIGURED, {}).get(self.name)
        default = "the bundle's" if value is None else self.shown(value)
        return record[0], f"{record[1]}  [default: {default}]"

    def shown(self, value: Any) -> str:
        """A value of the configuration in the words of the command line."""
        if isinstance(value, bool):
            return (self.opts if value else self.secondary_opts)[0].removeprefix("--")
        return str(value)


def as_configured(bundle: str, name: str) -> dict[str, Any]:
    """The plain values of one of a bundle's configuration files, by entry, None for null; nothing in it is run.

    Args:
        bundle: Name of a shipped bundle, or folder of any.
        name: Of the file in ``configs/``.

    Raises:
        DataError: There is no such bundle, it has no such file, or the file cannot be read.
    """
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


def typed(context: click.Context) -> dict[str, Any]:
    """The parameters that the user gave, by name; without those that have their default."""
    return {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


trust_bundle = click.option(
    "--trust-bundle",
    is_flag=True,
    help="Let the bundle's configuration run, now and from now on as long as it stays as it is: a bundle is code. "
    "Shipped bundles need no trust.",
)


def trusted(bundle: str, is_trusted_now: bool) -> str:
    """A bundle whose user trusts it, or is asked at the prompt; where nobody can answer, opening it is refused.

    Args:
        bundle: Name or folder.
        is_trusted_now: Whether ``--trust-bundle`` was given.
    """
    from amsam_med.trust import bundle_digest, is_trusted, trust
    from amsam_med.weights import locate_bundle

    try:
        root = locate_bundle(bundle)
    except DataError:
        return bundle  # the verb says that there is none
    if is_trusted(root):
        return bundle
    if not is_trusted_now and sys.stdin is not None and sys.stdin.isatty():
        click.echo(
            f"{root} is none of the shipped bundles. Its configuration is code that runs on this machine:", err=True
        )
        click.echo(f"  {root / 'configs'}\n  sha256 {bundle_digest(root)}", err=True)
        is_trusted_now = click.confirm("Do you trust its source? The answer yes is remembered.", err=True)
    if is_trusted_now:
        trust(root)
    return bundle
