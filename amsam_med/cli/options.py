"""Options of the command line, made from the fields of :mod:`amsam_med.options`, and some that commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from amsam_med.bundle_settings import as_configured as as_configured
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.errors import DataError
from amsam_med.options import Described, ModelOptions, Window, described

_Command = TypeVar("_Command", bound=Callable[..., Any])

_CONFIGURED = "amsam_med.cli.options.configured"
"""Key in a click context of a bundle's values, read once for all options of a help text."""

labelled_data = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Labelled images: a folder with images/ and masks/, ISIC 2018, Human (Vikram) or TikTok.",
)


class BundleOption(click.Option):
    """An entry of the bundle's ``train.yaml`` as an option; ``--help`` shows the bundle's value as the default.

    With ``--bundle`` before ``--help``, that bundle's values are shown.
    """

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Names and help, with the bundle's value."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        if _CONFIGURED not in ctx.meta:  # read once for all options
            with suppress(DataError):  # no such bundle; the verb itself says so
                ctx.meta[_CONFIGURED] = as_configured(ctx.params.get("bundle") or DEFAULT_BUNDLE, "train.yaml")
        value = ctx.meta.setdefault(_CONFIGURED, {}).get(self.name)
        default = "the bundle's" if value is None else self.shown(value)
        return record[0], f"{record[1]}  [default: {default}]"

    def shown(self, value: Any) -> str:
        """A value of the configuration as it is typed on the command line."""
        if isinstance(value, bool):
            return (self.opts if value else self.secondary_opts)[0].removeprefix("--")
        return str(value)


trust_bundle = click.option(
    "--trust-bundle",
    is_flag=True,
    help="Let the bundle's configuration run, now and from now on as long as it stays as it is: a bundle is code. "
    "Shipped bundles need no trust.",
)


def of(options: type, *names: str, **more: Mapping[str, Any]) -> Callable[[_Command], _Command]:
    """The fields of a class of :mod:`amsam_med.options` as options of a command, which gets their values by name.

    Where a bundle may be chosen, it may be trusted as well.

    Args:
        options: The class.
        names: Which of its fields; all that the command line has by default.
        **more: What click needs beyond what a field says, by the name of the field.
    """
    chosen = [one for one in described(options) if one.name in (names or [one.name])]

    def decorate(command: _Command) -> _Command:
        for one in reversed(chosen):
            if one.name == "bundle":
                command = trust_bundle(command)
            command = _option(one, more.get(one.name, {}))(command)
        return command

    return decorate


def _option(one: Described, more: Mapping[str, Any]) -> Callable[[_Command], _Command]:
    means = one.option
    is_entry = means.kind == "entry"
    says: dict[str, Any] = {"type": _type(one), "help": means.help, "default": one.default}
    if means.default and not is_entry:
        says["help"] += f"  [default: {means.default}]"
    else:
        says["show_default"] = one.default not in (None, False)
    if one.type is bool:
        del says["type"]
        says["is_flag"] = True
    if means.metavar:
        says["metavar"] = means.metavar
    if is_entry:
        says["cls"] = BundleOption
    return click.option(one.flags, one.name, **{**says, **more})


def _type(one: Described) -> Any:
    means = one.option
    if means.kind in ("file", "folder"):
        is_file = means.kind == "file"
        return click.Path(exists=is_file, dir_okay=not is_file, file_okay=is_file, path_type=Path)
    if get_origin(one.type) is Literal:
        return click.Choice(get_args(one.type))
    if one.type is int:
        return click.IntRange(means.least, means.most)
    if one.type is float:
        return click.FloatRange(means.least, means.most)
    return get_args(one.type) if one.type is Window else str


device = of(ModelOptions, "device")


def trusted(bundle: str, is_trusted_now: bool) -> str:
    """A bundle that the user trusts, or trusts now at the prompt; without a terminal, opening it will be refused.

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
