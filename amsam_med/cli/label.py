"""``amsam label``: a MONAI Label server over a folder of images or a DICOMweb server's."""

from __future__ import annotations

from pathlib import Path

import click

from amsam_med.cli import options
from amsam_med.cli.endings import tidy_end
from amsam_med.errors import ConfigError
from amsam_med.label.server import is_address, serve
from amsam_med.weights import shipped_bundles


@click.command(
    epilog="""\b
Examples:
  amsam label --studies photos/                     then connect 3D Slicer, CVAT or QuPath to http://127.0.0.1:8000
  amsam label --studies photos/ --models amsam_isic --base tiny-general
  amsam label --studies photos/ --versions /srv/models --port 8100
  amsam label --studies "http://127.0.0.1:8042/dicom-web?Modality=XC" --folder /srv/labels"""
)
@click.option(
    "--studies",
    required=True,
    metavar="FOLDER|URL",
    help="Folder of the images to label, where labels are saved; or a DICOMweb server, to which they are sent.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Any other one lets other machines in: switch on MONAI Label's authentication first.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Another name or address, with or without a port, by which clients reach this server. May be repeated.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="URL",
    help="Another site whose pages may use this server, such as http://viewer.example:3000. May be repeated.",
)
@click.option("--models", help="Names of bundles, with commas.  [default: all that are shipped]")
@click.option("--base", help="Begin with this base, untrained, instead of the shipped models.")
@click.option(
    "--versions",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where trained models are kept.  [default: .amsam in the folder]",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="With a DICOMweb server: keeps images, labels and models of it here.  [default: ~/.amsam/label/SERVER]",
)
@click.option("--follow-links", is_flag=True, help="Also show images that are links to files outside the folder.")
@options.device
@click.option("--verbose", is_flag=True, help="Log every request.")
def label(
    studies: str,
    port: int,
    host: str,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    models: str | None,
    base: str | None,
    versions: Path | None,
    folder: Path | None,
    follow_links: bool,
    device: str,
    verbose: bool,
) -> None:
    """Start a MONAI Label server: label a few images in a viewer, press train, review the rest.

    Needs `pip install 'amsam-med[label]'` in an environment of its own. Labels and trained models stay in the folder of
    studies; with a DICOMweb server, final labels go there as segmentations (DICOM SEG). User and password are looked up
    in ~/.netrc, a bearer token in AMSAM_DICOMWEB_TOKEN. The server ends with Ctrl-C or SIGTERM.
    """
    if folder is not None and not is_address(studies):
        raise ConfigError("--folder is for a DICOMweb server; labels of a folder are saved in that folder")
    given = {"models": models or ",".join(shipped_bundles()), "device": device}
    given |= {"base": base} if base else {}
    given |= {"versions": str(versions.absolute())} if versions else {}
    given |= {"folder": str(folder.absolute())} if folder else {}
    given |= {"links": "true"} if follow_links else {}
    log_level = "info" if verbose else "warning"
    # uvicorn ends in order at a signal, and then sends it to its own process once more.
    with tidy_end("Labels and trained models are kept."):
        serve(studies, given, host, port, log_level, allow_host, allow_origin)
