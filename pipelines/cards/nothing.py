"""The threshold below which an image holds no object: predicted IoUs of masks on images with and without objects.

    python -m pipelines.cards.nothing --data DATA -o OUT --bundle amsam_isic
    python -m pipelines.cards.nothing --data DATA -o OUT --bundle amsam_body

Every image is segmented by the bundle's own network, without a box. A threshold has two prices: objects whose mask it
empties (misses), and pictures of nothing whose mask it leaves (false positives). The images are ones that no result is
reported on: for lesions the part of ISIC 2018 for selection and the squares of plain skin in it; for people those that
pre-training held out, and the photos of COCO without people. The document gets a table and, beside it, the curve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from amsam_med.domains import DOMAINS, Domain
from amsam_med.files import atomic_path
from amsam_med.opened_model import open_model
from amsam_med.plots import BLUE, DOTS_PER_INCH
from pipelines.domains import open_part
from pipelines.markdown import table, write_block
from pipelines.weights.detectors import plain_skin, scenes_without_people
from pipelines.weights.scenes import SOURCES, held_out

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/nothing.md"
MOST_LOST = 1 / 400
"""Largest share of objects whose mask the chosen threshold may empty."""
STEP = 0.01
SHOWN = (0.15, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of the table, beside the chosen one."""


class Trust(NamedTuple):
    """IoUs that the network predicts for masks drawn without a box, each in [0, 1] and 0 for an empty mask.

    Attributes:
        objects: float ``(N,)``: of images with an object.
        nothing: float ``(M,)``: of images without.
    """

    objects: NDArray[np.float64]
    nothing: NDArray[np.float64]

    def lost(self, threshold: float) -> float:
        """Share of the objects whose mask is empty, or is emptied at a threshold."""
        return float(np.mean((self.objects < threshold) | (self.objects == 0)))

    def kept(self, threshold: float) -> float:
        """Share of the images without an object that keep a mask at a threshold."""
        return float(np.mean((self.nothing >= threshold) & (self.nothing > 0)))


def choose(trust: Trust) -> float:
    """The highest threshold, in hundredths, that loses no more than :data:`MOST_LOST` beyond what is empty."""
    allowed = trust.lost(0) + MOST_LOST
    thresholds: list[float] = np.arange(0, 1, STEP).round(2).tolist()
    return max(threshold for threshold in thresholds if trust.lost(threshold) <= allowed)


def images_on_skin(domain: Domain, data: Path, output: Path) -> tuple[list[Path], list[Path]]:
    """Images that it is selected by, and squares of plain skin cut from them, which are written to ``output``."""
    assert domain.validation is not None, "what is on skin has images to be selected by"
    items = open_part(data, domain.validation)
    skin = plain_skin(items, output / "plain-skin")
    return [Path(item["image"]) for item in items], [Path(item["image"]) for item in skin]


def images_of_people(data: Path, output: Path) -> tuple[list[Path], list[Path]]:
    """Photos of people that pre-training held out, and photos without any."""
    of_people = [source for source in SOURCES if source.folder in ("human_vikram", "pretrain/ccp", "pretrain/viton")]
    photos = [path for source in of_people for path in held_out(data, source)]
    coco = [path for path in scenes_without_people(data) if "coco128" in path.parts]
    return photos, coco


IMAGES: dict[str, Callable[[Path, Path], tuple[list[Path], list[Path]]]] = {
    **{domain.bundle: partial(images_on_skin, domain) for domain in DOMAINS if domain.is_on_skin},
    "amsam_body": images_of_people,
}
"""Images without an object, by bundle; a bundle of another domain needs a function here."""


def trust_in(images: Sequence[Path], bundle: str) -> NDArray[np.float64]:
    """Predicted IoUs of the masks that a bundle's network predicts without a box."""
    model = open_model(bundle, detector="none", overrides={"nothing_below": 0.0})
    seen = (model.predict([model.prepare(path)])[0] for path in images)
    return np.array([one.predicted_iou if one.certainty > 0 else 0.0 for one in seen])


def render(trust: Trust, bundle: str, model: str) -> str:
    """The prices of thresholds as Markdown."""
    chosen = choose(trust)
    rows = [
        [f"**{t:.2f}**" if t == chosen else f"{t:.2f}", _percent(trust.lost(t)), _percent(trust.kept(t))]
        for t in sorted({0.0, *SHOWN, chosen})
    ]
    return "\n\n".join(
        [
            f"`{bundle}`, model `{model[:12]}`: {len(trust.objects)} images with an object, "
            f"{len(trust.nothing)} without. Chosen: **{chosen:.2f}**.",
            table(["masks below this predicted IoU are emptied", "objects lost", "nothing that keeps a mask"], rows),
        ]
    )


def draw(trust: Trust, path: Path) -> None:
    """Draw false positives over misses, with the chosen threshold."""
    thresholds = np.arange(0, 1 + STEP, STEP)
    lost, kept = ([100 * share(t) for t in thresholds] for share in (trust.lost, trust.kept))
    chosen = choose(trust)
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(lost, kept, color=BLUE, drawstyle="steps-post")
    axes.plot(100 * trust.lost(chosen), 100 * trust.kept(chosen), "o", color=BLUE)
    axes.annotate(
        f"predicted IoU {chosen:.2f}",
        (100 * trust.lost(chosen), 100 * trust.kept(chosen)),
        xytext=(8, 8),
        textcoords="offset points",
    )
    axes.set(xlabel="objects lost, %", ylabel="nothing that keeps a mask, %", xlim=(-0.2, 10), ylim=(-2, 102))
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--bundle", type=click.Choice(list(IMAGES)), required=True)
@click.option("--document", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=DOCUMENT)
def main(data: Path, output: Path, bundle: str, document: Path) -> None:
    """Measure what thresholds cost, choose one, and write table and curve into the document."""
    model = str(open_model(bundle).digests["model"])
    record = output / f"{bundle}-{model[:12]}.json"  # what is on record is not measured again
    if not record.is_file():
        objects, nothing = (trust_in(images, bundle).tolist() for images in IMAGES[bundle](data, output))
        output.mkdir(parents=True, exist_ok=True)
        with atomic_path(record) as path:
            path.write_text(json.dumps({"objects": objects, "nothing": nothing}) + "\n", encoding="utf-8")
    trust = Trust(**{name: np.array(values) for name, values in json.loads(record.read_text()).items()})
    text = render(trust, bundle, model)
    write_block(document, bundle, text)
    draw(trust, document.parent / "images" / f"nothing-{bundle}.png")
    click.echo(text)


if __name__ == "__main__":
    main()
