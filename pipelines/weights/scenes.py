"""Training images for pre-training: an image bank in memory, from which augmented batches are drawn.

All images stay in memory as uint8 squares. Flips, rotations, scales, colours and hair are drawn in batches of tensors
on the training device; people and things are pasted one by one. Every image has a map of mask ids, and a table of the
ids that make up its *whole* object, the target without a prompt. Single ids are targets of box and point prompts.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import rgb_to_grayscale

from amsam_med.synthetic.artefacts import add_bubbles, scale_marks
from amsam_med.synthetic.strokes import cover, wandering_strokes

BANK_SIZE = 288
"""Side of the stored squares: a little larger than the model input, so that zooming in keeps detail."""
IDS = 256
REST_OF_PERSON = 254
WALL_TOLERANCE = 28
"""Levels of a channel, of 255, by which a person differs from the wall behind."""
HELD_OUT = 0.05
"""Share of each source for validation."""
MINIMUM_AREA = 100
"""Smallest target, in pixels of the model input."""


class Source(NamedTuple):
    """A folder of ``images`` and ``masks``.

    Attributes:
        folder: Path below the data folder.
        turn: Largest rotation in degrees: people stand upright, skin has no upright orientation.
        has_whole: All non-zero ids together are one object (a lesion, a person, a cell).
        first: Number of images to use, the first by name; 0 for all.
        closest: Smallest share of the image's side that is shown, so that full-length photos also give portraits.
        is_studio: Taken in front of a plain wall: what differs from the wall belongs to the person, even if the
            machine-made masks leave it out, as they do with necks and hems.
        is_skin: Its objects are surrounded by skin, from which squares without any object are cut.
    """

    folder: str
    turn: float = 180.0
    has_whole: bool = True
    first: int = 0
    closest: float = 0.55
    is_studio: bool = False
    is_skin: bool = False


SOURCES = (
    Source("isic2018/train", closest=0.35, is_skin=True),
    Source("ham10000", is_skin=True),
    Source("human_vikram", turn=20.0, first=190),
    Source("pretrain/ccp", turn=20.0, closest=0.3),
    Source("pretrain/coco128", turn=15.0, has_whole=False),
    Source("pretrain/viton", turn=20.0, closest=0.4, is_studio=True),
    Source("pretrain/weizmann", turn=20.0),
    Source("pretrain/davis16", turn=20.0),
    Source("pretrain/bsds500", turn=20.0, has_whole=False),
    Source("pretrain/dsb2018", has_whole=False),
    Source("pretrain/wbc"),
    Source("pretrain/fuseg"),
    Source("pretrain/magtile"),
)
PASTED = "pasted"
"""Name of the images made by pasting objects onto other photos, in a mix."""
BLOBS = "blobs"
"""Name of the images made of two photos' textures, one of them pasted as a blob onto the other, in a mix."""
NOTHING = "nothing"
"""Name of the images without any object, in a mix: scenery, and skin next to lesions."""
MIXES: dict[str, dict[str, float]] = {
    "tiny": {
        "isic2018/train": 0.26,
        "ham10000": 0.12,
        "human_vikram": 0.12,
        "pretrain/ccp": 0.12,
        "pretrain/coco128": 0.04,
        "pretrain/viton": 0.03,
        "pretrain/weizmann": 0.01,
        "pretrain/davis16": 0.015,
        "pretrain/bsds500": 0.02,
        "pretrain/dsb2018": 0.015,
        "pretrain/wbc": 0.005,
        "pretrain/fuseg": 0.015,
        "pretrain/magtile": 0.01,
        PASTED: 0.16,
        NOTHING: 0.18,
    },
    "tiny-general": {
        "pretrain/ccp": 0.14,
        "pretrain/coco128": 0.05,
        "pretrain/viton": 0.02,
        "pretrain/weizmann": 0.02,
        "pretrain/davis16": 0.03,
        "pretrain/bsds500": 0.05,
        "pretrain/dsb2018": 0.04,
        "pretrain/wbc": 0.03,
        "pretrain/fuseg": 0.09,
        "pretrain/magtile": 0.05,
        PASTED: 0.18,
        BLOBS: 0.40,
    },
}
"""Bases and the shares of their training images.

``tiny-general`` is trained neither on skin lesions nor on human_vikram, and on no images without an object: from those
it would learn that any unknown kind of object is background. Blobs teach it instead that whatever differs from its
surroundings is an object; without them, it segments lesions worse the longer it is trained.
"""
FINISHES: dict[str, dict[str, float]] = {
    "tiny": {
        **MIXES["tiny"],
        "isic2018/train": 0.36,
        "human_vikram": 0.14,
        "pretrain/ccp": 0.08,
        "pretrain/coco128": 0.03,
        "pretrain/viton": 0.015,
        "pretrain/weizmann": 0.005,
        "pretrain/davis16": 0.01,
        "pretrain/fuseg": 0.01,
        PASTED: 0.14,
    },
}
"""Shares of a run's last stage, where they differ: more images of the base's later use."""
PEOPLE = ("pretrain/person_cutouts", "pretrain/ccp", "pretrain/viton", "human_vikram")
OBJECTS = ("pretrain/weizmann", "pretrain/davis16")
SCENERY = ("pretrain/backgrounds", "pretrain/bsds500")
OBJECT_SHARE = 0.15
"""Share of the pasted images that show a thing or an animal instead of a person."""
GREY_SHARE = 0.18
"""Share of the images that lose their colour."""
PATCH_SIDES = (16, 90)
"""Sides of the squares of a photo that textures are cut from, in pixels of the bank."""
LEAST_CONTRAST = 0.07
"""Least difference of a blob's mean colour from its background, in [0, 1]: less would not be visible."""
SECOND_BLOB_SHARE = 0.15
SPOTTED_SHARE = 0.4
"""Share of the blobs that have a part of another colour, which is not a separate object."""
OUTLINE = 0.35
"""Coverage at which a soft blob ends: people draw the outline of a fading border on its outer side."""
OVERLAYS = 96
OVERLAY_SHARE = 0.22
"""Number of hair and ruler overlays that are drawn in advance, and the share of images that get one."""
CIRCLE_SHARE, BUBBLES_SHARE, COARSE_SHARE = 0.15, 0.06, 0.2
"""Shares of the images with a dark circle around them, with gel bubbles, and with reduced detail."""
HIDDEN = 0.15
"""Pixels darkened by a circle to less than this share of their light are hidden, and part of no object."""
SKIN_SHARE = 0.7
"""Share of squares of skin among images without an object, if the bank has lesions; the rest is scenery."""
SMALLEST_SKIN = 40
SKIN_MARGIN = 5
"""Pixels of the bank: the smallest side of a square of skin, and its distance from the object."""


class Items(NamedTuple):
    """Squared images with their ids.

    Attributes:
        images: uint8 ``(N, 3, BANK_SIZE, BANK_SIZE)``.
        ids: uint8 ``(N, 1, BANK_SIZE, BANK_SIZE)``, 0 for background.
        whole: bool ``(N, 256)``: which ids make up the whole object.
        is_empty: bool ``(N,)``: there is no object of any kind, and the target without a prompt is an empty mask.
    """

    images: Tensor
    ids: Tensor
    whole: Tensor
    is_empty: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.images)

    def take(self, index: Tensor | slice) -> Items:
        """A selection."""
        return Items(*(part[index] for part in self))


class Scene(NamedTuple):
    """A batch in the network's input frame.

    Attributes:
        images: float32 ``(B, 3, S, S)`` in [0, 1].
        ids: uint8 ``(B, 1, S, S)``.
        whole: bool ``(B, 256)``.
        is_empty: bool ``(B,)``.
    """

    images: Tensor
    ids: Tensor
    whole: Tensor
    is_empty: Tensor


def load_source(root: Path, source: Source) -> Items:
    """Read a source into memory.

    Raises:
        FileNotFoundError: The folder or a mask is missing.
    """
    folder, paths = root / source.folder, _paths(root, source)
    with ThreadPoolExecutor(2) as pool:
        pairs = list(pool.map(lambda path: _read_pair(path, folder / "masks"), paths))
    if source.is_studio:
        pairs = [(image, with_rest_of_person(image, mask)) for image, mask in pairs]
    images = torch.from_numpy(np.stack([image for image, _ in pairs]).transpose(0, 3, 1, 2).copy())
    ids = torch.from_numpy(np.stack([mask for _, mask in pairs]))[:, None]
    whole = torch.zeros(len(paths), IDS, dtype=torch.bool)
    whole[:, 1:] = source.has_whole
    if (folder / "classes.csv").is_file():
        _mark_people(whole, folder / "classes.csv", [path.stem for path in paths])
    return Items(images, ids, whole, torch.zeros(len(paths), dtype=torch.bool))


def held_out(root: Path, source: Source) -> list[Path]:
    """The images of a source that a :class:`Bank` keeps for validation; errors as for :func:`load_source`."""
    paths = _paths(root, source)
    return [paths[index] for index in _split(len(paths), HELD_OUT)[0].tolist()]


def held_out_items(items: Items) -> Items:
    """The part of a source that a :class:`Bank` keeps for validation."""
    return items.take(_split(len(items), HELD_OUT)[0])


def _paths(root: Path, source: Source) -> list[Path]:
    paths = sorted((root / source.folder / "images").iterdir())
    if not paths:
        raise FileNotFoundError(f"{root / source.folder / 'images'} is empty; expected images of {source.folder}")
    return paths[: source.first] if source.first else paths


def _split(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Indices for validation and for training, the same in every run."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held = max(12, round(share * count))
    return order[:held], order[held:]


def with_rest_of_person(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Give pixels that differ from a plain wall, and belong to no part yet, the id :data:`REST_OF_PERSON`.

    Args:
        image: uint8 ``(H, W, 3)``; the wall is visible in both upper corners.
        mask: uint8 ``(H, W)``, ids of parts.
    """
    corner = min(mask.shape) // 14
    wall = np.median(np.concatenate([image[:corner, :corner], image[:corner, -corner:]]).reshape(-1, 3), axis=0)
    stands_out = np.abs(image.astype(np.int16) - wall).max(axis=2) > WALL_TOLERANCE
    person = ndimage.binary_opening(ndimage.binary_fill_holes(stands_out | (mask > 0)), iterations=2)
    return np.where((mask == 0) & person, REST_OF_PERSON, mask).astype(np.uint8)


class Bank:
    """All sources of a mix in memory, with a held-out part of each.

    Args:
        root: The data folder.
        mix: Shares by source folder, and of :data:`PASTED`; a missing folder is an error.
        share: Share of each source that is held out for validation (at least 12 images).
        with_overlays: Draw hair and rulers over some of the images.
    """

    def __init__(
        self, root: Path, mix: Mapping[str, float] = MIXES["tiny"], share: float = HELD_OUT, with_overlays: bool = True
    ) -> None:
        self.sources = tuple(source for source in SOURCES if source.folder in mix)
        if unknown := mix.keys() - {PASTED, BLOBS, NOTHING, *(source.folder for source in self.sources)}:
            raise ValueError(
                f"the mix names {', '.join(sorted(unknown))}; expected folders of SOURCES, "
                f"{PASTED!r}, {BLOBS!r} or {NOTHING!r}"
            )
        self.use_shares(mix)
        self.train: dict[str, Items] = {}
        self.validation: dict[str, Items] = {}
        for source in self.sources:
            items = load_source(root, source)
            validation, train = _split(len(items), share)
            self.train[source.folder] = items.take(train)
            self.validation[source.folder] = items.take(validation)
        people, scenery = Source(PEOPLE[0]), Source(SCENERY[0], has_whole=False)
        self.people = [load_source(root, people), *(self.train[name] for name in PEOPLE[1:] if name in self.train)]
        self.objects = [self.train[name] for name in OBJECTS if name in self.train]
        self.scenery = [load_source(root, scenery), *(self.train[name] for name in SCENERY[1:] if name in self.train)]
        self.skin = [self.train[source.folder] for source in self.sources if source.is_skin]
        self.overlays = draw_overlays(OVERLAYS) if with_overlays else None

    def use_shares(self, mix: Mapping[str, float]) -> None:
        """Draw with other shares of the same sources from now on."""
        made = [mix.get(name, 0.0) for name in (PASTED, BLOBS, NOTHING)]
        self._weights = torch.tensor([*(mix[source.folder] for source in self.sources), *made])

    def scenes(self, batch_size: int, size: int, device: torch.device) -> Iterator[Scene]:
        """Endless augmented batches; randomness from torch's global generator."""
        while True:
            choice = torch.multinomial(self._weights, batch_size, replacement=True)
            picks = [self._pick(int(index)) for index in choice]
            limits = torch.tensor([[turn, closest] for _, turn, closest in picks])
            parts = zip(*(items for items, _, _ in picks), strict=True)
            scene = augment(Items(*(torch.cat(part).to(device) for part in parts)), limits, size)
            if self.overlays is not None:
                scene = scene._replace(images=add_overlays(scene.images, self.overlays))
            yield add_dark_circles(scene)

    def _pick(self, index: int) -> tuple[Items, float, float]:
        """An image, its largest rotation in degrees and its closest view."""
        if index < len(self.sources):
            source = self.sources[index]
            return random_item(self.train[source.folder]), source.turn, source.closest
        if index == len(self.sources) + 1:
            return self._blob_scene(), 180.0, 0.6
        if index > len(self.sources):
            return self._empty_scene(), 180.0, 0.6
        scenery = random_item(_random_group(self.scenery))
        if self.objects and _uniform(0, 1) < OBJECT_SHARE:
            return paste(random_item(_random_group(self.objects)), scenery), 15.0, 0.7
        if _uniform(0, 1) < 0.25:  # two people, side by side or overlapping; both belong to the target
            scenery = paste(random_item(_random_group(self.people)), scenery)
        return paste(random_item(_random_group(self.people)), scenery), 10.0, 0.7

    def _blob_scene(self) -> Items:
        """An image of one blob, sometimes two, on a texture."""
        photos = [self.scenery[0], *self.train.values()]
        ground = cut_texture(random_item(_random_group(photos)))
        if _uniform(0, 1) < SECOND_BLOB_SHARE:
            ground = paste_blob(ground, cut_texture(random_item(_random_group(photos))))
        return paste_blob(ground, cut_texture(random_item(_random_group(photos))))

    def _empty_scene(self) -> Items:
        """An image without an object: skin next to a lesion, or scenery without people."""
        while self.skin and _uniform(0, 1) < SKIN_SHARE:
            if (square := cut_skin(random_item(_random_group(self.skin)))) is not None:
                return square
        images, ids, whole, _ = random_item(self.scenery[0])
        return Items(images, ids, whole, torch.ones(1, dtype=torch.bool))


def cut_skin(photo: Items) -> Items | None:
    """The largest square of one photo that shows nothing of its object, or a part of that square, as an image.

    Returns:
        None where there is no square of :data:`SMALLEST_SKIN` pixels.
    """
    box = largest_free_square(photo.ids[0, 0].numpy() > 0, SKIN_MARGIN)
    if box is None or box[2] - box[0] + 1 < SMALLEST_SKIN:
        return None
    largest = (box[2] - box[0] + 1) // 2
    column, row = box[2] - largest, box[3] - largest
    half = int(_uniform(SMALLEST_SKIN / 2, largest + 1))
    square = photo.images[:, :, row - half + 1 : row + half, column - half + 1 : column + half]
    return _enlarged(square, "bilinear", is_empty=True)


def _enlarged(square: Tensor, mode: str, is_empty: bool) -> Items:
    """A part of a photo, ``(1, 3, s, s)`` in [0, 255], as an image without mask ids."""
    pixels = functional.interpolate(square.float(), size=(BANK_SIZE, BANK_SIZE), mode=mode, align_corners=False)
    return Items(
        pixels.clamp(0, 255).round().to(torch.uint8),
        torch.zeros(1, 1, BANK_SIZE, BANK_SIZE, dtype=torch.uint8),
        torch.zeros(1, IDS, dtype=torch.bool),
        torch.tensor([is_empty]),
    )


def largest_free_square(is_object: NDArray[np.bool_], margin: int) -> tuple[int, int, int, int] | None:
    """The largest square at least ``margin`` pixels away from the object: x1, y1, x2, y2; None if there is none."""
    is_near = ndimage.maximum_filter(is_object, size=2 * margin + 1, mode="constant")
    free = np.pad(~is_near, 1)  # the image's edge limits a square as the object does
    # By chessboard distance, "within reach" is a square: the farthest pixel is the centre of the largest free square.
    reach = ndimage.distance_transform_cdt(free, metric="chessboard")[1:-1, 1:-1]
    half = int(reach.max())
    if half == 0:
        return None
    row, column = (int(place) for place in np.unravel_index(int(reach.argmax()), reach.shape))
    return column - half + 1, row - half + 1, column + half, row + half


def draw_overlays(count: int, seed: int = 0) -> Tensor:
    """Draw overlays of sparse to dense hair; every sixth one is a ruler instead.

    Returns:
        uint8 ``(count, 1, BANK_SIZE, BANK_SIZE)``: coverage of each pixel, 255 for all of it.
    """
    rng = np.random.default_rng(seed)
    size = (BANK_SIZE, BANK_SIZE)
    overlays = []
    for number in range(count):
        if number % 6 == 5:
            strokes = scale_marks(rng, size)
        else:
            thickness = float(rng.uniform(0.004, 0.010))
            strokes = wandering_strokes(
                rng,
                size,
                int(rng.integers(4, 45)) if number % 2 else int(rng.integers(45, 100)),
                length=(0.15, 0.9),
                width=(0.5 * thickness, 1.4 * thickness),
                bend=float(rng.uniform(0.3, 1.6)),
                heading=float(rng.uniform(0, 2 * math.pi)),
            )
        overlays.append(cover(strokes, size).coverage)
    return torch.from_numpy((255 * np.stack(overlays)).astype(np.uint8))[:, None]


def add_overlays(images: Tensor, overlays: Tensor) -> Tensor:
    """Draw overlays in dark or light tones over some of the images, float ``(B, 3, S, S)`` in [0, 1]."""
    b, size, device = len(images), images.shape[-1], images.device
    chosen = torch.nonzero(torch.rand(b) < OVERLAY_SHARE).flatten()
    if not len(chosen):
        return images
    coverage = overlays[torch.randint(len(overlays), (len(chosen),))].to(device).float() / 255
    coverage = functional.interpolate(coverage, size=(size, size), mode="bilinear", antialias=True)
    coverage = coverage.rot90(int(torch.randint(4, (1,))), (2, 3)) * _draw(len(chosen), 0.6, 1.0, device)
    tone = torch.where(torch.rand(len(chosen), 1, 1, 1, device=device) < 0.8, 0.12, 0.75)
    tone = tone + 0.08 * torch.randn(len(chosen), 3, 1, 1, device=device)
    images = images.clone()
    images[chosen] = images[chosen] * (1 - coverage) + tone.clamp(0, 1) * coverage
    return images


def paste(person: Items, scenery: Items) -> Items:
    """Paste the whole object of one image, at a random scale and position, onto another image.

    If the scenery itself was made by pasting, both objects together are the whole.
    """
    scale = math.exp(_uniform(math.log(0.28), math.log(2.0)))
    # Above 1, the position cuts most people off at the bottom, so that they keep their heads, as in portraits.
    alpha = person.whole[0][person.ids.long()].float()
    is_cut_off = bool(alpha[0, 0, -3:].any())
    if scale >= 1:
        down = _uniform(0.3, 0.9) - 0.9 * scale
    elif is_cut_off:  # a person cut off by the photo's edge must end at the bottom, not in mid-air
        down = scale - 1 - _uniform(0, 0.2)
    else:
        down = _uniform(-0.3, 0.3)
    shift = _uniform(-0.5, 0.5), down
    theta = torch.tensor([[[1 / scale, 0.0, shift[0] / scale], [0.0, 1 / scale, shift[1] / scale]]])
    if _uniform(0, 1) < 0.5:
        theta[:, 0, 0] *= -1
    grid = functional.affine_grid(theta, [1, 3, BANK_SIZE, BANK_SIZE], align_corners=False)
    moved = functional.grid_sample(torch.cat([person.images.float(), alpha], dim=1), grid, align_corners=False)
    pixels, alpha = moved[:, :3], functional.avg_pool2d(moved[:, 3:], kernel_size=3, stride=1, padding=1)
    gain = torch.empty(1, 3, 1, 1).uniform_(0.85, 1.15)
    pasted = pixels * gain * alpha + scenery.images * (1 - alpha)
    is_pasted_on = bool(scenery.whole.any())
    ids = torch.where(alpha > 0.5, 2 if is_pasted_on else 1, scenery.ids if is_pasted_on else 0).to(torch.uint8)
    whole = torch.zeros_like(person.whole)
    whole[:, 1:3] = True
    return Items(pasted.clamp(0, 255).to(torch.uint8), ids, whole, torch.zeros_like(person.is_empty))


def cut_texture(photo: Items) -> Items:
    """A small square of a photo, enlarged to an image without an object.

    Half of them are cut from an object of that photo, so that skin and cloth also serve as background.
    """
    side = int(_uniform(*PATCH_SIDES))
    row, column = (int(_uniform(0, BANK_SIZE - side + 1)) for _ in range(2))
    target = photo.whole[0][photo.ids[0, 0].long()]
    if target.any() and _uniform(0, 1) < 0.5:
        pixel = int(torch.multinomial(target.flatten().float(), 1))
        row, column = (min(max(at - side // 2, 0), BANK_SIZE - side) for at in divmod(pixel, BANK_SIZE))
    square = photo.images[:, :, row : row + side, column : column + side].float()
    return _enlarged(_with_less_contrast(square, _uniform(0.1, 1)), "bicubic", is_empty=False)


def _with_less_contrast(pixels: Tensor, share: float) -> Tensor:
    """A texture ``(1, 3, h, w)`` with its contrast reduced to a share: differences from the mean colour are scaled."""
    colour = pixels.mean(dim=(2, 3), keepdim=True)
    return colour + share * (pixels - colour)


def paste_blob(ground: Items, texture: Items) -> Items:
    """Paste a blob of a texture, of random round shape, size and softness, onto another; all blobs are the whole."""
    alpha = _blob()
    below, above = ground.images.float() / 255, texture.images.float() / 255
    above = _with_less_contrast(above, _uniform(0, 1))
    above = above + _uniform(0, 0.8) * (below - above)  # semi-transparent, like tinted glass
    if _uniform(0, 1) < SPOTTED_SHARE:
        tone = torch.empty(1, 3, 1, 1).uniform_(-0.35, 0.35)
        above = above + _blob() * (tone + _uniform(-0.25, 0.25))
    least = max(
        LEAST_CONTRAST, float(below.std(dim=(2, 3)).max())
    )  # a blob must differ by more than the texture varies
    if float((above - below).mean(dim=(2, 3)).abs().max()) < least:
        is_dark = float(below.mean()) < 0.5
        above = above + (1 if is_dark else -1) * _uniform(least, max(0.4, 1.5 * least))
    pixels = below + alpha * (above - below)
    number = int(ground.ids.max()) + 1
    ids = torch.where(alpha > OUTLINE, number, ground.ids).to(torch.uint8)
    whole = ground.whole.clone()
    whole[:, number] = True
    return Items((255 * pixels.clamp(0, 1)).round().to(torch.uint8), ids, whole, ground.is_empty)


def _blob() -> Tensor:
    """Coverage of each pixel by a blob, a stretched circle with a wavy edge: float ``(1, 1, S, S)`` in [0, 1]."""
    axis = (torch.arange(BANK_SIZE) + 0.5) / BANK_SIZE - 0.5
    y, x = torch.meshgrid(axis - _uniform(-0.2, 0.2), axis - _uniform(-0.2, 0.2), indexing="ij")
    turn, stretch = _uniform(0, math.pi), math.exp(_uniform(0, 0.7))
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    angle = torch.atan2(across * stretch, along)
    waves = torch.zeros_like(angle)
    for turns in range(2, 9):
        waves += _uniform(0, 0.35) / turns * torch.cos(turns * angle + _uniform(0, 2 * math.pi))
    radius = math.exp(_uniform(math.log(0.1), math.log(0.5)))
    inside = radius * (1 + waves) - torch.hypot(along, across * stretch)  # of the side; above 0 in the blob
    softness = math.exp(_uniform(math.log(0.003), math.log(0.12)))
    return torch.sigmoid(2 * inside / softness)[None, None]


def augment(batch: Items, limits: Tensor, size: int) -> Scene:
    """Flip, rotate, scale, shift and recolour a batch.

    Args:
        batch: Squared images with their ids.
        limits: float ``(B, 2)``: largest rotation of each image in degrees, and the smallest part of its side to show.
        size: Side of the model input in pixels.
    """
    theta = _random_affine(limits).to(batch.images.device)
    grid = functional.affine_grid(theta, [len(batch), 3, size, size], align_corners=False)
    options: dict[str, Any] = {"padding_mode": "reflection", "align_corners": False}
    images = functional.grid_sample(batch.images.float() / 255, grid, mode="bilinear", **options)
    ids = functional.grid_sample(batch.ids.float(), grid, mode="nearest", **options).round().to(torch.uint8)
    return Scene(recolour(images), ids, batch.whole, batch.is_empty)


def add_dark_circles(scene: Scene) -> Scene:
    """Darken the corners of some images by a vignette or a dermatoscope's circle; hidden pixels lose their ids."""
    b, _, size, _ = scene.images.shape
    device = scene.images.device
    light = torch.where(torch.rand(b, 1, 1, 1, device=device) < CIRCLE_SHARE, _vignette(b, size, device), 1.0)
    return scene._replace(images=scene.images * light, ids=torch.where(light < HIDDEN, 0, scene.ids).to(torch.uint8))


def recolour(images: Tensor) -> Tensor:
    """Change brightness, contrast, saturation, cast, gamma, detail, bubbles and noise of ``(B, 3, S, S)`` at random."""
    b, device = len(images), images.device
    draw = partial(_draw, b, device=device)
    grey = rgb_to_grayscale(images)
    is_coloured = (torch.rand(b, 1, 1, 1, device=device) > GREY_SHARE).float()
    images = grey + (images - grey) * draw(0.5, 1.4) * is_coloured
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * draw(0.7, 1.3)
    cast = 1 + is_coloured * draw(-0.2, 0.2, channels=3)  # a grey image stays grey
    images = (images * draw(0.7, 1.3) * cast).clamp(1e-3, 1) ** draw(0.7, 1.43)
    for index in torch.nonzero(torch.rand(b) < COARSE_SHARE).flatten().tolist():
        images[index : index + 1] = _coarse(images[index : index + 1])
    for index in torch.nonzero(torch.rand(b) < BUBBLES_SHARE).flatten().tolist():
        images[index] = _with_bubbles(images[index])
    if _uniform(0, 1) < 0.25:
        kernel = torch.tensor([1.0, 2.0, 1.0], device=device)
        weight = (kernel[:, None] * kernel[None] / 16).expand(3, 1, 3, 3)
        images = functional.conv2d(functional.pad(images, (1, 1, 1, 1), mode="reflect"), weight, groups=3)
    return (images + torch.randn_like(images) * draw(0, 0.03)).clamp(0, 1)


def _random_affine(limits: Tensor) -> Tensor:
    """Matrices ``(B, 2, 3)`` from output to input coordinates in [-1, 1], for ``limits`` as in :func:`augment`."""
    count, (turns, closest) = len(limits), limits.unbind(1)
    angle = torch.deg2rad(torch.empty(count).uniform_(-1, 1) * turns)
    zoom = closest * (1.3 / closest) ** torch.rand(count)
    stretch = torch.exp(torch.empty(count).uniform_(-0.15, 0.15))
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    room = 0.15 + 0.7 * (1 - zoom).clamp_min(0)  # the smaller the part that is shown, the farther it may be shifted
    shift = torch.empty(count, 2).uniform_(-1, 1) * room[:, None]
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = torch.stack([cos * mirror * stretch, -sin, shift[:, 0], sin * mirror * stretch, cos, shift[:, 1]], dim=1)
    return rows.view(count, 2, 3)


def _coarse(image: Tensor) -> Tensor:
    """An image ``(1, 3, S, S)`` with two to four times less detail, as from a small file or out of focus."""
    size = image.shape[-1]
    small = round(size / _uniform(2, 4))
    less = functional.interpolate(image, size=(small, small), mode="bilinear", antialias=True)
    return functional.interpolate(less, size=(size, size), mode="bilinear", align_corners=False)


def _with_bubbles(image: Tensor) -> Tensor:
    """An image ``(3, S, S)`` with synthetic gel bubbles; the generator draws none in two of three images."""
    rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
    return torch.from_numpy(add_bubbles(image.cpu().numpy(), rng)).to(image)


def _vignette(count: int, size: int, device: torch.device) -> Tensor:
    """Share of light with dark corners, half of them a dermatoscope's black circle: float ``(B, 1, S, S)``."""
    axis = torch.linspace(-1, 1, size, device=device)
    shift = torch.empty(2, count, 1, 1, 1, device=device).uniform_(-0.12, 0.12)
    radius = torch.sqrt((axis[:, None] - shift[0]) ** 2 + (axis[None] - shift[1]) ** 2)
    edge = torch.empty(count, 1, 1, 1, device=device).uniform_(0.75, 1.4)
    is_circle = torch.rand(count, 1, 1, 1, device=device) < 0.5
    soft = torch.empty(count, 1, 1, 1, device=device).uniform_(0.05, 0.4)
    return torch.sigmoid((edge - radius) / torch.where(is_circle, 0.01, soft))


def _read_pair(path: Path, masks: Path) -> tuple[np.ndarray, np.ndarray]:
    """A squared RGB image and its ids; without masks, the ids are a cut-out's alpha channel, or all 0."""
    square = (BANK_SIZE, BANK_SIZE)
    with Image.open(path) as file:
        alpha = file.getchannel("A") if "A" in file.getbands() else None
        pixels = np.asarray(file.convert("RGB").resize(square, Image.Resampling.BILINEAR, reducing_gap=2.0))
    if masks.is_dir():
        with Image.open(masks / f"{path.stem}.png") as file:
            return pixels, np.asarray(file.resize(square, Image.Resampling.NEAREST), dtype=np.uint8)
    if alpha is None:
        return pixels, np.zeros(square, dtype=np.uint8)
    return pixels, (np.asarray(alpha.resize(square, Image.Resampling.BILINEAR)) > 127).astype(np.uint8)


def _mark_people(whole: Tensor, classes: Path, stems: list[str]) -> None:
    """Mark the ids of people (COCO class 0), who together are the whole object of a photo."""
    row_of = {stem: row for row, stem in enumerate(stems)}
    with classes.open(newline="") as file:
        for entry in csv.DictReader(file):
            if entry["coco_class"] == "0" and entry["stem"] in row_of:
                whole[row_of[entry["stem"]], int(entry["id"])] = True


def random_item(items: Items) -> Items:
    """One image, drawn at random."""
    index = int(torch.randint(len(items), (1,)))
    return items.take(slice(index, index + 1))


def _random_group(groups: list[Items]) -> Items:
    return groups[int(torch.randint(len(groups), (1,)))]


def _draw(count: int, low: float, high: float, device: torch.device, channels: int = 1) -> Tensor:
    """Uniform numbers, float ``(count, channels, 1, 1)``."""
    return torch.empty(count, channels, 1, 1, device=device).uniform_(low, high)


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(1).uniform_(low, high))
