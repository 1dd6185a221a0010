"""The command line ``amsam``.

Sub-commands are modules of this package, imported only when they run or explain themselves, so that ``amsam --help``
does not wait for torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

import click

from amsam_med import __version__
from amsam_med.errors import AmsamError

DEBUG_VARIABLE = "AMSAM_DEBUG"
"""Environment variable; 1 shows the traceback of every error."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

COMMANDS = {
    "segment": ("amsam_med.cli.segment:segment", "Segment images, folders and DICOM files."),
    "train": ("amsam_med.cli.train:train", "Adapt a model to a few labelled images."),
    "evaluate": ("amsam_med.cli.evaluate:evaluate", "Measure a model on labelled images."),
    "label": ("amsam_med.cli.label:label", "Start a MONAI Label server: label, train, review."),
    "detector": ("amsam_med.cli.detector:detector", "Train and try box detectors."),
    "data": ("amsam_med.cli.data:data", "Download and inspect data sets."),
    "weights": ("amsam_med.cli.weights:weights", "List, get and verify weight files."),
    "info": ("amsam_med.cli.info:info", "Show versions, devices, weights and bundles."),
    "demo": ("amsam_med.cli.demo:demo", "See everything once, on synthetic images."),
}
"""Sub-command: where its click command is, and what ``amsam --help`` says about it."""


class LazyGroup(click.Group):
    """A group that imports a sub-command on use and turns an :class:`AmsamError` into a message and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one sub-command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of sub-commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, short_help) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> None:
        """Run the sub-command; a fault that the user can mend needs no traceback.

        What the sub-command returns is dropped: an exit code is set by ``ctx.exit`` and nothing else.
        """
        try:
            super().invoke(ctx)
        except AmsamError as error:
            if os.environ.get(DEBUG_VARIABLE) == "1":
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="amsam")
def amsam() -> None:
    """Few-shot segmentation of medical images that prompts and adapts itself (AM-SAM).

    For research and education; not a medical device.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``amsam`` and return its exit code: 0 done, 1 a fault to mend, 2 wrong usage, 130 interrupted.

    Args:
        arguments: The words after ``amsam``; those of this process by default.
    """
    try:
        result = amsam.main(arguments, prog_name="amsam", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    return result if isinstance(result, int) else 0
