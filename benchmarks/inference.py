"""How long does an image take? Encoder, decoder, detector, and all of them as `amsam segment` calls them.

    python -m benchmarks.inference [--bundle amsam_isic] [--test-views none] [--data DATA] [--images 40]
    python -m benchmarks.inference --beside repvit_m0_9

Images are read and squashed beforehand, from the test part of ISIC 2018 under DATA or AMSAM_DATA, or else drawn; then
the parts work on batches of 8 on all cores, the first batch unmeasured, and the median batch counts. Let nothing else
run beside it. The last line is ``network and box X ms per image (limit 40)``. With ``--beside`` everything is measured
in turns with a network of another backbone, with random weights and without a rival of the detected box, as bundles had
it before; the last line is then ``network and box X ms per image, R of Y ms with BACKBONE``.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import timm
import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional

from amsam_med.boxes import full_image_box
from amsam_med.data.datalists import list_images
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.infer import PromptInferer
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.decoder import EMBEDDING_CHANNELS
from amsam_med.model.encoders import CompactImageEncoder
from amsam_med.opened_model import Model, open_model
from amsam_med.synthetic import write_dermoscopy
from amsam_med.views import VIEWS_OF_KIND, ViewKind

BATCH_SIZE = 8
LIMIT_MS = 40


class Part(NamedTuple):
    """A row of the table.

    Attributes:
        name: What is measured.
        work: Done once for each batch ``(8, 3, S, S)``.
    """

    name: str
    work: Callable[[Tensor], object]


class OtherEncoder(CompactImageEncoder):
    """The compact encoder around another backbone, with random weights.

    Args:
        input_size: Side of the model input in pixels.
        backbone: timm's name of a network with features at stride 8, 16 and 32.
    """

    def __init__(self, input_size: int, backbone: str) -> None:
        super().__init__(input_size)
        network = timm.create_model(backbone, features_only=True, out_indices=(-3, -2, -1), pretrained=False)
        self.feature_channels = sum(cast(FeatureInfo, network.feature_info).channels())
        self.neck[0] = nn.Conv2d(self.feature_channels, EMBEDDING_CHANNELS, kernel_size=1)
        self.backbone = network
        self.fuse()

    def features(self, image: Tensor) -> Tensor:
        """As the compact encoder's own."""
        fine, middle, coarse = self.backbone((image - self.pixel_mean) / self.pixel_std)
        coarse = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.cat([functional.avg_pool2d(fine, kernel_size=2), middle, coarse], dim=1)


@click.command(context_settings={"show_default": True})
@click.option("--bundle", default=DEFAULT_BUNDLE, help="Name or folder.")
@click.option("--test-views", type=click.Choice(list(VIEWS_OF_KIND)), default="none")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder.  [default: AMSAM_DATA]"
)
@click.option("--images", "count", type=click.IntRange(2 * BATCH_SIZE), default=5 * BATCH_SIZE)
@click.option("--beside", metavar="BACKBONE", help="timm's name of another backbone to measure in turns.")
def main(bundle: str, test_views: ViewKind, data: Path | None, count: int, beside: str | None) -> None:
    """Print milliseconds an image of the parts and of the whole."""
    model = open_model(bundle, device="cpu", test_views=test_views)
    network, inferer = model.network, model.inferer
    batches, source = _batches(data or _data_of_environment(), count, model)
    print(f"{bundle}, {len(batches) * BATCH_SIZE} {source} images, {torch.get_num_threads()} threads")
    milliseconds = {}
    with torch.inference_mode():
        for part in _parts(network, inferer):
            milliseconds[part.name] = _milliseconds(part.work, batches)
            print(f"{part.name:<36}{milliseconds[part.name]:6.1f} ms per image", flush=True)
        if beside is not None:
            ours, theirs = _in_turns(network, inferer, beside, batches)
            print(
                f"network and box {ours:.1f} ms per image, {ours / theirs:.2f} of that with {beside} ({theirs:.1f} ms)"
            )
            return
    print(f"network and box {milliseconds[part.name]:.1f} ms per image (limit {LIMIT_MS})")


def _parts(network: AmSam, inferer: PromptInferer) -> list[Part]:
    size = network.input_size
    embedding = network.image_encoder(torch.rand(BATCH_SIZE, 3, size, size))
    box = full_image_box((size, size)).expand(BATCH_SIZE, 4)
    parts = [Part("encoder", network.image_encoder), Part("decoder", lambda _: network(embedding, box))]
    if inferer.detector is not None:
        parts.append(Part(f"detector at {getattr(inferer.detector, 'input_size', '?')} px", inferer.detector))
    views = f", {len(inferer.views)} views" if len(inferer.views) > 1 else ""
    return [*parts, Part(f"network, box and flags{views}", lambda images: inferer.predict(images, network))]


def _in_turns(network: AmSam, inferer: PromptInferer, backbone: str, batches: Sequence[Tensor]) -> tuple[float, float]:
    """Milliseconds an image of the bundle, and of its network with another backbone and without a rival."""
    settings: dict[str, Any] = network.settings
    other = build_amsam(**settings).eval()
    other.image_encoder = OtherEncoder(network.input_size, backbone).eval()
    other.to(memory_format=torch.channels_last)
    plain = PromptInferer(inferer.detector)
    pair = (partial(inferer.predict, network=network), partial(plain.predict, network=other))
    seconds = [[_seconds(partial(predict, batch)) for predict in pair] for batch in batches]
    ours, theirs = (1000 * statistics.median(column) / BATCH_SIZE for column in zip(*seconds[1:], strict=True))
    return ours, theirs


def _milliseconds(work: Callable[[Tensor], object], batches: Sequence[Tensor]) -> float:
    """Of the median batch, an image; the first batch warms up."""
    seconds = [_seconds(partial(work, batch)) for batch in batches]
    return 1000 * statistics.median(seconds[1:]) / BATCH_SIZE


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _batches(data: Path | None, count: int, model: Model) -> tuple[list[Tensor], str]:
    folder = None if data is None else data / "isic2018" / "test" / "images"
    if folder is not None and folder.is_dir():
        return _prepared(list_images(folder)[:count], model), "real"
    with tempfile.TemporaryDirectory() as name:
        write_dermoscopy(Path(name), count, seed=0)
        return _prepared(list_images(Path(name) / "images"), model), "synthetic"


def _prepared(paths: Sequence[Path], model: Model) -> list[Tensor]:
    images = torch.stack([model.prepare(path).inputs for path in paths])
    return [batch for batch in torch.split(images, BATCH_SIZE) if len(batch) == BATCH_SIZE]


def _data_of_environment() -> Path | None:
    return Path(os.environ["AMSAM_DATA"]) if "AMSAM_DATA" in os.environ else None


if __name__ == "__main__":
    main()
