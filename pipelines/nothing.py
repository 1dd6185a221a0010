"""When is a mask of nothing? Trust in masks of objects and of pictures without any, and the thresholds between them.

    python -m pipelines.nothing --data DATA -o OUT --bundle amsam_isic
    python -m pipelines.nothing --data DATA -o OUT --bundle amsam_body

Every image is segmented by the bundle's own network, without a box, and shown to its detector. There are two
thresholds, the second of them for images in which the detector finds nothing. A pair has two prices: objects whose mask
it empties (misses), and pictures of nothing whose mask it leaves (false positives). The images are ones that no result
is reported on: for lesions the part of ISIC 2018 for selection and the squares of plain skin in it; for people those
that pre-training held out, and the photos of COCO without people. The document gets a table and, beside it, the curve.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from amsam_med.bundle import open_bundle
from amsam_med.data.datalists import Item, isic2018_datalist
from amsam_med.files import atomic_path
from amsam_med.infer import PromptInferer
from amsam_med.keys import Keys
from amsam_med.report import BLUE, DOTS_PER_INCH, LIGHT_BLUE
from amsam_med.weights import sha256
from pipelines.detectors import scenes_without_people
from pipelines.reporting import table, write_block
from pipelines.robustness import NO_LESION, VARIANTS, write_variant
from pipelines.scenes import SOURCES, held_out

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/nothing.md"
MOST_LOST = 1 / 200
"""Of the objects: what the chosen thresholds may empty."""
STEP = 0.01
SHOWN = (0.15, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of the table, beside the chosen ones."""
CONFIDENT = 0.995
"""Where the search for the second threshold ends: the network hardly ever trusts a mask so much."""

Thresholds = tuple[float, float]
"""Of images with a box and of images without."""


@dataclass(frozen=True)
class Seen:
    """What the network and the detector think of N images.

    Attributes:
        trust: float ``(N,)``: predicted IoU of the mask drawn without a box, in [0, 1], and 0 for an empty mask.
        is_boxed: bool ``(N,)``: the detector found something.
    """

    trust: NDArray[np.float64]
    is_boxed: NDArray[np.bool_]

    def kept(self, thresholds: Thresholds) -> float:
        """Share of the images that keep a mask."""
        return float(np.mean((self.trust >= np.where(self.is_boxed, *thresholds)) & (self.trust > 0)))


@dataclass(frozen=True)
class Evidence:
    """Images with an object, and images without."""

    objects: Seen
    nothing: Seen

    def lost(self, thresholds: Thresholds) -> float:
        """Share of the objects whose mask is empty, or is emptied."""
        return 1 - self.objects.kept(thresholds)

    def kept(self, thresholds: Thresholds) -> float:
        """Share of the images without an object that keep a mask."""
        return self.nothing.kept(thresholds)


def pairs() -> Iterator[Thresholds]:
    """All pairs of thresholds in hundredths; two who doubt empty at least as much as one."""
    steps = np.arange(0, CONFIDENT, STEP).round(2).tolist()
    return ((boxed, unboxed) for boxed in steps for unboxed in steps if unboxed >= boxed)


def choose(evidence: Evidence) -> Thresholds:
    """The pair that leaves the fewest masks of nothing and loses no more than :data:`MOST_LOST` beyond what is empty.

    Of equals the highest first threshold is taken, then the highest second one.
    """
    allowed = evidence.lost((0, 0)) + MOST_LOST + 1e-9
    return min(
        (pair for pair in pairs() if evidence.lost(pair) <= allowed),
        key=lambda pair: (evidence.kept(pair), -pair[0], -pair[1]),
    )


def images_of_lesions(data: Path, output: Path) -> tuple[list[Path], list[Path]]:
    """Images with a lesion, and squares of plain skin cut from them, which are written to ``output``."""
    items = isic2018_datalist(data / "isic2018", "val")
    skin = next(variant for variant in VARIANTS if variant.name == NO_LESION)
    pairs = write_variant(skin, items, output / "plain-skin")
    return [Path(item["image"]) for item in items], [image for image, _ in pairs]


def images_of_people(data: Path, output: Path) -> tuple[list[Path], list[Path]]:
    """Photos of people that pre-training held out, and photos without any."""
    of_people = [source for source in SOURCES if source.folder in ("human_vikram", "pretrain/ccp", "pretrain/viton")]
    photos = [path for source in of_people for path in held_out(data, source)]
    coco = [path for path in scenes_without_people(data) if "coco128" in path.parts]
    return photos, coco


IMAGES = {"amsam_isic": images_of_lesions, "amsam_body": images_of_people}


def look(images: Sequence[Path], bundle: str) -> Seen:
    """What a bundle's network thinks of the masks that it draws without a box, and what its detector finds."""
    parser = open_bundle(bundle, "inference")
    prepare, network, detector = (parser.get_parsed_content(part) for part in ("preprocessing", "network", "detector"))
    device, inferer = next(network.parameters()).device, PromptInferer()
    trust, is_boxed = [], []
    for path in images:
        item: Item = {Keys.IMAGE.value: str(path)}
        image = prepare(item)[Keys.IMAGE.value][None].to(device)
        seen = inferer.predict(image, network)
        trust.append(float(seen.predicted_iou) if float(seen.certainty) > 0 else 0.0)
        is_boxed.append(bool(detector(image).is_detected))
    return Seen(np.array(trust), np.array(is_boxed))


def render(evidence: Evidence, bundle: str, model: str, detector: str) -> str:
    """The prices of thresholds as Markdown."""
    chosen = choose(evidence)
    rows = []
    for pair in sorted({(0.0, 0.0), *((t, t) for t in SHOWN), chosen}):
        prices = [_percent(evidence.lost(pair)), _percent(evidence.kept(pair))]
        rows.append([*(f"**{t:.2f}**" if pair == chosen else f"{t:.2f}" for t in pair), *prices])
    header = ["masks below this predicted IoU are emptied", "and without a box below this"]
    objects, nothing = len(evidence.objects.trust), len(evidence.nothing.trust)
    boxed = _percent(float(evidence.objects.is_boxed.mean())), _percent(float(evidence.nothing.is_boxed.mean()))
    return "\n\n".join(
        [
            f"`{bundle}`, model `{model[:12]}`, detector `{detector[:12]}`: {objects} images with an object, of which "
            f"{boxed[0]} get a box, {nothing} without, of which {boxed[1]} do. "
            f"Chosen: **{chosen[0]:.2f}** and **{chosen[1]:.2f}**.",
            table([*header, "objects lost", "nothing that keeps a mask"], rows),
        ]
    )


def draw(evidence: Evidence, path: Path) -> None:
    """Draw false positives over misses: of one threshold for all images, and of the best pairs, with the chosen one."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    curves = {
        "one threshold": (LIGHT_BLUE, [pair for pair in pairs() if pair[0] == pair[1]]),
        "two": (BLUE, [*pairs()]),
    }
    for name, (colour, offered) in curves.items():
        prices = np.array(sorted((evidence.lost(pair), evidence.kept(pair)) for pair in offered))
        least = np.minimum.accumulate(prices[:, 1])
        axes.plot(100 * prices[:, 0], 100 * least, color=colour, drawstyle="steps-post", label=name)
    chosen = choose(evidence)
    place = (100 * evidence.lost(chosen), 100 * evidence.kept(chosen))
    axes.plot(*place, "o", color=BLUE)
    axes.annotate(
        f"predicted IoU {chosen[0]:.2f}, {chosen[1]:.2f} without a box",
        place,
        xytext=(8, 8),
        textcoords="offset points",
    )
    axes.set(xlabel="objects lost, %", ylabel="nothing that keeps a mask, %", xlim=(-0.2, 10), ylim=(-2, 102))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as lent:
        figure.savefig(lent, dpi=DOTS_PER_INCH)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--bundle", type=click.Choice(list(IMAGES)), required=True)
@click.option("--document", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=DOCUMENT)
def main(data: Path, output: Path, bundle: str, document: Path) -> None:
    """Measure what thresholds cost, choose a pair, and write table and curve into the document."""
    parser = open_bundle(bundle, "inference")
    model, detector = (sha256(Path(parser.get_parsed_content(part))) for part in ("model_file", "detector_file"))
    record = output / f"{bundle}-{model[:12]}-{detector[:12]}.json"  # what is on record is not measured again
    if not record.is_file():
        seen = [look(images, bundle) for images in IMAGES[bundle](data, output)]
        output.mkdir(parents=True, exist_ok=True)
        with atomic_path(record) as path:
            path.write_text(
                json.dumps([[part.trust.tolist(), part.is_boxed.tolist()] for part in seen]) + "\n", encoding="utf-8"
            )
    parts = json.loads(record.read_text(encoding="utf-8"))
    evidence = Evidence(*(Seen(np.array(trust), np.array(is_boxed)) for trust, is_boxed in parts))
    text = render(evidence, bundle, model, detector)
    write_block(document, bundle, text)
    draw(evidence, document.parent / "images" / f"nothing-{bundle}.png")
    click.echo(text)


if __name__ == "__main__":
    main()
