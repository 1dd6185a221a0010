"""The command line ``amsam``.

Sub-commands are modules of this package, imported only when they run or explain themselves, so that ``amsam --help``
does not wait for torch.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import click

from amsam_med import __version__
from amsam_med.errors import AmsamError

DEBUG_VARIABLE = "AMSAM_DEBUG"
"""Environment variable; 1 shows the traceback of every error."""

_LONGEST_MESSAGE = 4000  # characters
_DEEPEST_PATH = 500  # folders

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""
UNREAD = 141
"""Exit code if the output is a closed pipe: 128 + SIGPIPE, as in shells."""

COMMANDS = {
    "segment": ("amsam_med.cli.segment:segment", "Segment images, folders and DICOM files."),
    "train": ("amsam_med.cli.train:train", "Adapt a model to a few labelled images."),
    "evaluate": ("amsam_med.cli.evaluate:evaluate", "Measure a model on labelled images."),
    "label": ("amsam_med.cli.label:label", "Start a MONAI Label server: label, train, review."),
    "detector": ("amsam_med.cli.detector:detector", "Train and try box detectors."),
    "bundle": ("amsam_med.cli.bundle:bundle", "Make a bundle for a task of your own."),
    "data": ("amsam_med.cli.data:data", "Download and inspect data sets."),
    "weights": ("amsam_med.cli.weights:weights", "List, get and verify weight files."),
    "info": ("amsam_med.cli.info:info", "Show versions, devices, weights and bundles."),
    "demo": ("amsam_med.cli.demo:demo", "See everything once, on synthetic images."),
}
"""Sub-command: where its click command is, and what ``amsam --help`` says about it."""


class LazyGroup(click.Group):
    """A group that imports a sub-command on use and turns an :class:`AmsamError` into a message and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which a new user needs them."""
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
        """Run the sub-command; an error that the user can fix is shown without a traceback.

        The sub-command's return value is dropped: only ``ctx.exit`` sets an exit code.
        """
        try:
            tempfile.gettempdir()  # raises now; without one, torch fails later with unrelated messages
        except OSError as error:
            raise click.ClickException(
                f"{error.strerror or error}. Make room in one of these, or name another one in the environment "
                "variable TMPDIR"
            ) from error
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
    """Run ``amsam`` and return its exit code: 0 done, 1 a fault to mend, 2 wrong usage, 130 interrupted, 141 unread.

    Args:
        arguments: The words after ``amsam``; those of this process by default.
    """
    _open_standard_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_words(words)
        result = amsam.main(words, prog_name="amsam", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()  # a full disk or a closed pipe is noticed here, not while Python shuts down
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        with suppress(OSError):
            click.echo(_shortened(said.getvalue().rstrip("\n")), err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        with suppress(OSError):
            click.echo("Interrupted.", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        code = _silenced()
    except SystemExit:
        if not type(sys.stdout).__module__.startswith("click"):
            raise
        code = _silenced()  # click has replaced the stream, as the pipe is closed
    except RuntimeError as error:
        if not str(error).startswith("Could not determine home directory"):
            raise
        click.echo("Error: there is no home folder; name one in the environment variable HOME", err=True)
        code = 1
    except OSError as error:  # from the system; defects of this package raise other exceptions
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        code = _said(error)
    return code


def _open_standard_streams() -> None:
    """Open closed standard streams: otherwise the next opened file gets their descriptor, and with it the output."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115  # for good


def _check_words(words: Sequence[str]) -> None:
    """Refuse words that are valid for no command.

    Empty words come from a shell variable without a value, and would mean the current folder. Python creates the
    folders of a path by recursion, which fails for some thousand of them.
    """
    for before, word in pairwise(["amsam", *words]):
        option, is_given, value = word.partition("=")
        if not word or (option.startswith("--") and is_given and not value):
            what = f"{option} has an empty value" if option else f"the word after {before} is empty"
            raise click.UsageError(f"{what}. Give one; '.' is the current folder")
        if (depth := word.count(os.sep)) > _DEEPEST_PATH:
            raise click.UsageError(
                f"the path {word[:40]}... has {depth:,} folders, one in another, more than {_DEEPEST_PATH}; "
                "give a shorter one"
            )


def _shortened(message: str) -> str:
    """A message with the middle of very long words cut out."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 2 :]}"


def _said(error: OSError) -> int:
    """Print an error of the system, if printing is still possible; returns the exit code."""
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    hint = ". Make room, or print elsewhere" if error.errno == errno.ENOSPC and not place else ""
    with suppress(OSError):
        click.echo(_shortened(f"Error: {place}{error.strerror or error}{hint}"), err=True)
    if error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        _silenced()
    return 1


def _silenced() -> int:
    """Discard all further output, even at shutdown; returns the exit code of a closed pipe."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    return UNREAD
