"""The pictures of docs/monai-label.md: the server's page in a browser, and masks before and after a training.

    .venv-label/bin/python -m pipelines.monailabel.pictures -o docs/images

The images are drawn, so that anyone may see them. The server begins with the base that has seen no dermoscopy. Four
images, each the one that the model doubts most, are labelled with their true masks; shown are those of the others that
it did worst on before. Needs Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import PIL.Image
import torch

from amsam_med.data.readers import read_image, read_mask
from amsam_med.evaluate import dice_score
from amsam_med.files import atomic_path
from amsam_med.plots import PanelRow, draw_panel
from amsam_med.synthetic import write_dermoscopy
from pipelines.monailabel.process import Server, wait_for_training

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MODEL = "amsam_isic"
DRAWN, LABELLED, SHOWN = 24, 4, 2
PAGE_SIZE = (1280, 1500)  # pixels


@click.command(context_settings={"show_default": True})
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--seed", default=7, help="Of the drawn images.")
def main(output: Path, seed: int) -> None:
    """Write label_api.png and label_before_after.jpg."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "drawn"
        write_dermoscopy(drawn, DRAWN, seed=seed)
        images = sorted((drawn / "images").iterdir())
        masks = {image.stem: next((drawn / "masks").glob(f"{image.stem}*")) for image in images}
        studies = Path(scratch) / "studies"
        shutil.copytree(drawn / "images", studies)
        server = Server(studies, "--models", MODEL, "--base", "tiny-general")
        try:
            photograph_page(server.address, output / "label_api.png")
            client, labelled = server.client(), set()
            for _ in range(LABELLED):
                image = client.next_sample("doubt", {})["id"]
                client.save_label(image, str(masks[image]), "final", {})
                labelled.add(image)
            unseen = [image for image in images if image.stem not in labelled]
            before = _rows(client, unseen, masks, "before")
            client.train_start(MODEL, {})
            click.echo(f"training: {wait_for_training(client)['status']}")
            after = _rows(client, unseen, masks, "after")
        finally:
            server.stop()
    for name, rows in (("before", before), ("after", after)):
        click.echo(f"{name}: mean Dice of {len(rows)} unseen images {sum(row.dice for row in rows) / len(rows):.4f}")
    pairs = sorted(zip(before, after, strict=True), key=lambda pair: pair[0].dice)
    draw_panel([row for pair in pairs[:SHOWN] for row in pair], output / "label_before_after.jpg")


def photograph_page(address: str, path: Path) -> None:
    """A PNG of a page, in a browser that has no other site to ask.

    Raises:
        click.ClickException: There is no browser.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise click.ClickException("Chromium is not installed; it comes with the Debian package chromium")
    with atomic_path(path) as temporary:
        width, height = PAGE_SIZE
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=20000",
        ]
        size = f"--window-size={width},{height}"
        subprocess.run([browser, *options, size, f"--screenshot={temporary}", address], check=True, capture_output=True)  # noqa: S603  # a fixed list of words, no shell
        PIL.Image.open(temporary).convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=64).save(
            temporary, optimize=True
        )


def _rows(client: Any, images: Sequence[Path], masks: dict[str, Path], when: str) -> list[PanelRow]:
    rows = []
    for image in images:
        file, params = client.infer(MODEL, image.stem, {})
        found, truth = read_mask(file), read_mask(masks[image.stem])
        box = params.get("box")
        dice = dice_score(torch.from_numpy(found), torch.from_numpy(truth))
        rows.append(PanelRow(when, read_image(image).pixels, truth, found, box and tuple(box), dice))
    return rows


if __name__ == "__main__":
    main()
