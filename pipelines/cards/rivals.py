"""Choice of ``rival_margin``: Dice when the mask with or without the detected box is kept, by margin.

    python -m pipelines.cards.rivals --data DATA --bundle amsam_isic
    python -m pipelines.cards.rivals --data DATA --bundle amsam_body

Every image is segmented with the detector's box and without. The mask without it is kept where its predicted IoU is
higher than the other's by a margin; below zero it is kept unless the mask with the box is trusted by as much more. The
images are ones that no result is reported on: for lesions the part of ISIC 2018 for selection; for people photos that
pre-training held out, and one, two or three of these people pasted onto scenes. The document gets a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from amsam_med.bundle_settings import as_configured
from amsam_med.data.transforms import preprocessing, restore_original
from amsam_med.domains import DOMAINS, Domain
from amsam_med.evaluate import dice_score
from amsam_med.infer import PromptInferer
from amsam_med.keys import Keys
from amsam_med.model import AmSam
from amsam_med.opened_model import open_model
from pipelines.domains import open_part
from pipelines.markdown import table, write_block
from pipelines.weights.scenes import SCENERY, SOURCES, Items, Source, held_out_items, load_source, paste, random_item

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/embedded-models.md"
MARGINS = (-1.0, -0.3, -0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 1.0)
PEOPLE = ("human_vikram", "pretrain/ccp")
PASTED = 60
"""Images for each number of pasted people."""
GROUPS = {"one person pasted": 1, "two people pasted": 2, "three people pasted": 3}
SEED = 5

Pair = tuple[Tensor, Tensor]
"""An image float ``(3, S, S)`` in [0, 1], and its mask ``(H, W)``."""


class Answers(NamedTuple):
    """Dice and predicted IoU of the masks of N images with and without their boxes, each float ``(N,)`` in [0, 1].

    Attributes:
        with_box: Dice with the box; where none was found that of the mask without.
        without: Dice without the box.
        lead: Predicted IoU without the box less that with it.
    """

    with_box: NDArray[np.float64]
    without: NDArray[np.float64]
    lead: NDArray[np.float64]

    def dice(self, margin: float) -> float:
        """Mean Dice at a margin."""
        return float(np.where(self.lead > margin, self.without, self.with_box).mean())


def photos_for_selection(domain: Domain, data: Path, size: int) -> Mapping[str, Callable[[], Iterator[Pair]]]:
    """The images that a domain is selected by."""
    assert domain.validation is not None, "a domain without them wants a function of its own in IMAGES"
    prepare, items = preprocessing(size, with_label=True, label_at="original"), open_part(data, domain.validation)

    def pairs() -> Iterator[Pair]:
        for item in items:
            prepared = prepare(dict(item))
            yield prepared[Keys.IMAGE], prepared[Keys.LABEL][0]

    return {"/".join(filter(None, domain.validation)): pairs}


def photos_of_people(data: Path, size: int) -> Mapping[str, Callable[[], Iterator[Pair]]]:
    """Photos that pre-training held out, and scenes onto which their people are pasted."""
    held = {source.folder: held_out_items(load_source(data, source)) for source in SOURCES if source.folder in PEOPLE}
    scenery = load_source(data, Source(SCENERY[0], has_whole=False))

    def photos(items: Items) -> Iterator[Pair]:
        for index in range(len(items)):
            yield _pair(items.take(slice(index, index + 1)), size)

    def scenes(count: int) -> Iterator[Pair]:
        torch.manual_seed(SEED)
        folders = list(held)
        for _ in range(PASTED):
            scene = random_item(scenery)
            for _ in range(count):
                scene = paste(random_item(held[folders[int(torch.randint(len(folders), (1,)))]]), scene)
            yield _pair(scene, size)

    of_photos = {folder: partial(photos, items) for folder, items in held.items()}
    return {**of_photos, **{name: partial(scenes, count) for name, count in GROUPS.items()}}


IMAGES: dict[str, Callable[[Path, int], Mapping[str, Callable[[], Iterator[Pair]]]]] = {
    **{domain.bundle: partial(photos_for_selection, domain) for domain in DOMAINS if domain.validation is not None},
    "amsam_body": photos_of_people,
}


def answer(pairs: Iterator[Pair], inferer: PromptInferer, network: AmSam) -> Answers:
    """Segment images with the boxes that the inferer finds, and without."""
    alone, rows = PromptInferer(), []
    for image, truth in pairs:
        found = [one.predict(image[None], network) for one in (inferer, alone)]
        size = (truth.shape[0], truth.shape[1])
        dice = [dice_score(restore_original(one.mask_logits[0], size), truth > 0) for one in found]
        rows.append([*dice, float(found[1].predicted_iou - found[0].predicted_iou)])
    return Answers(*np.array(rows).T)


def _pair(item: Items, size: int) -> Pair:
    image = functional.interpolate(item.images.float() / 255, size=(size, size), mode="bilinear", antialias=True)
    return image[0], item.whole[0][item.ids[0, 0].long()].to(torch.uint8)


def _name(margin: float) -> str:
    return {MARGINS[0]: "never the box", MARGINS[-1]: "always the box"}.get(margin, f"{margin:+.2f}")


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--bundle", type=click.Choice(list(IMAGES)), required=True)
@click.option("--document", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=DOCUMENT)
def main(data: Path, bundle: str, document: Path) -> None:
    """Measure what margins are worth, and write the table into the document."""
    model = open_model(bundle, overrides={"rival_margin": None, "nothing_below": 0.0})
    groups = IMAGES[bundle](data, model.network.input_size)
    found = {name: answer(pairs(), model.inferer, model.network) for name, pairs in groups.items()}
    chosen = float(as_configured(bundle, "inference.yaml")["rival_margin"])
    rows = []
    for margin in sorted({*MARGINS, chosen}):
        cells = [_name(margin), *(f"{answers.dice(margin):.4f}" for answers in found.values())]
        rows.append([f"**{cell}**" for cell in cells] if margin == chosen else cells)
    header = ["margin", *(f"{name} ({len(answers.lead)})" for name, answers in found.items())]
    digest = str(model.digests["model"])[:12]
    text = f"`{bundle}`, model `{digest}`; the bundle's margin is **{chosen:+.2f}**.\n\n{table(header, rows)}"
    write_block(document, f"rivals {bundle}", text)
    click.echo(text)


if __name__ == "__main__":
    main()
