"""Outlines of masks: drawn over pictures and thumbnails, as polygons, and as lines of a plot.

All outlines of the package are drawn here, so that a class has the same colour everywhere, and an object that ends at
the image's edge is closed there.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import PIL.ImageFont
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from skimage.measure import approximate_polygon, find_contours, label

if TYPE_CHECKING:  # only plots need matplotlib, and they bring it
    from matplotlib.axes import Axes
    from matplotlib.patheffects import AbstractPathEffect
    from matplotlib.typing import LineStyleType

Colour: TypeAlias = tuple[int, int, int]

OUTLINE_COLOURS: tuple[Colour, ...] = (
    (0, 230, 170),
    (255, 176, 0),
    (100, 143, 255),
    (220, 38, 127),
    (254, 97, 0),
    (120, 94, 240),
)
"""RGB of classes 1, 2, ... (then again from the first): apart from skin and tissue, and for the colour-blind."""

BOX_COLOUR = (255, 255, 255)
FLAG_COLOUR = (176, 0, 32)
THUMBNAIL_SIDE = 160  # pixels

_PIXELS_PER_LINE_WIDTH = 320  # a line is this share of the image's longer side
_DASH_WIDTHS = 8  # a dash is as many line widths long
_SMALLEST_WORDS = 8.0  # pixels
_OUTLINE_ALPHA = [max(0, min(255, round(1024 * (0.375 - abs(share / 255 - 0.5))))) for share in range(256)]


def thumbnail(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], side: int = THUMBNAIL_SIDE) -> bytes:
    """A small JPEG of a picture with the outline of what was found.

    Args:
        pixels: uint8 ``(3, h, w)`` RGB: the picture at any size, also squashed.
        mask: Class ids, uint8 ``(H, W)``, in the picture's frame, whose shape the thumbnail gets.
        side: Length of its longer side in pixels, at most.
    """
    height, width = mask.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    small = picture.resize(size, PIL.Image.Resampling.BILINEAR, reducing_gap=1.0)
    ids = np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST))
    canvas = np.array(small)
    for class_id in classes_of(ids):
        inside = np.pad(ids == class_id, 1)
        core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        canvas[(ids == class_id) & ~core] = OUTLINE_COLOURS[(class_id - 1) % len(OUTLINE_COLOURS)]
    stream = io.BytesIO()
    PIL.Image.fromarray(canvas).save(stream, format="JPEG", quality=80, subsampling=0)  # thin lines keep their colour
    return stream.getvalue()


def draw_overlay(
    pixels: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    box_in_original: Sequence[float] | None = None,
    flags: Sequence[str] = (),
) -> PIL.Image.Image:
    """A picture with the outline of each class, and the box it came from.

    A flagged result has a dashed box, and its flags on a red strip at the bottom.

    Args:
        pixels: uint8 ``(3, H, W)`` RGB.
        mask: Class ids, uint8 ``(H, W)``.
        box_in_original: x1, y1, x2, y2 in pixels of the picture, or None.
        flags: Reasons to review the result.
    """
    line_width = max(1, round(max(mask.shape) / _PIXELS_PER_LINE_WIDTH))
    canvas = np.array(pixels.transpose(1, 2, 0), order="C")
    for class_id in classes_of(mask):
        _draw_outline(canvas, mask == class_id, OUTLINE_COLOURS[(class_id - 1) % len(OUTLINE_COLOURS)], line_width)
    picture = PIL.Image.fromarray(canvas)
    if box_in_original is not None:
        _draw_box(picture, [float(edge) for edge in box_in_original], max(1, line_width // 2), is_dashed=bool(flags))
    if flags:
        _draw_words(picture, ", ".join(flags))
    return picture


def classes_of(ids: NDArray[np.uint8]) -> list[int]:
    """The classes that a mask holds, without the background."""
    largest = int(ids.max(initial=0))
    return [class_id for class_id in range(1, largest + 1) if class_id == largest or (ids == class_id).any()]


def polygons_of(is_object: NDArray[np.bool_]) -> list[list[list[list[float]]]]:
    """The parts of an object: each its outer ring and those of its holes, (x, y) in pixels, closed."""
    polygons = []
    parts, count = label(is_object, return_num=True, connectivity=1)  # type: ignore[no-untyped-call]
    for number, (rows, columns) in enumerate(find_objects(parts, max_label=count), start=1):
        part = np.pad(parts[rows, columns] == number, 1)
        contours: list[NDArray[np.float64]] = find_contours(part, 0.5)  # type: ignore[no-untyped-call]
        shift = np.array([columns.start - 0.5, rows.start - 0.5])  # of the padding, and from centres to edges
        rings = [(contour[:, ::-1] + shift).round(2).tolist() for contour in contours]
        outer = max(range(len(rings)), key=lambda index: np.ptp(contours[index], axis=0).prod())
        polygons.append([rings[outer], *(ring for index, ring in enumerate(rings) if index != outer)])
    return polygons


def simple_polygons_of(is_object: NDArray[np.bool_], tolerance: float, least_points: int) -> list[list[list[float]]]:
    """The parts of an object and its holes as polygons with few corners, for viewers in which they are edited.

    Args:
        is_object: bool ``(H, W)``.
        tolerance: Pixels by which a polygon may leave the outline.
        least_points: Corners below which a polygon is left out; the first is counted twice.

    Returns:
        (x, y) in pixels of the picture, the first corner again at the end.
    """
    polygons = []
    for contour in find_contours(np.pad(is_object, 1), 0.5):  # type: ignore[no-untyped-call]
        corners = approximate_polygon(contour, tolerance)  # type: ignore[no-untyped-call]
        if len(corners) >= least_points:
            polygons.append((corners[:, ::-1] - 0.5).round(1).tolist())
    return polygons


def draw_on_axes(
    axes: Axes,
    is_object: NDArray[np.bool_],
    colour: str,
    style: LineStyleType,
    width: float,
    effects: Sequence[AbstractPathEffect],
    is_clipped: bool = True,
) -> None:
    """Draw the outline of an object, bool ``(H, W)``, on the axes of a plot that show its image.

    Args:
        axes: Pixel centres lie at whole numbers.
        is_object: Nothing is drawn if it is empty.
        colour: As matplotlib names it.
        style: Of the line, for example "dashed".
        width: Of the line, in points.
        effects: What lies below the line, for example a dark edge.
        is_clipped: Whether half of a line on the image's edge is cut off.
    """
    if not is_object.any():
        return
    closed = np.pad(is_object, 1)  # an object at the image's edge gets its outline there, too
    rows, columns = np.arange(-1, is_object.shape[0] + 1), np.arange(-1, is_object.shape[1] + 1)
    lines = axes.contour(columns, rows, closed, levels=[0.5], colors=colour, linestyles=[style], linewidths=width)
    lines.set(clip_on=is_clipped, path_effects=list(effects))


def _draw_outline(canvas: NDArray[np.uint8], is_object: NDArray[np.bool_], colour: Colour, line_width: int) -> None:
    """A line half inside and half outside the object, on uint8 ``(H, W, 3)``; closed at the canvas's edge, too."""
    margin = 2 * line_width
    rows, columns = (np.flatnonzero(is_object.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    framed = np.pad(is_object[top : rows[-1] + 1, left : columns[-1] + 1], margin)
    # The border is where a window of twice the line's width is half object and half background.
    share = PIL.Image.fromarray(framed.view(np.uint8) * np.uint8(255)).filter(PIL.ImageFilter.BoxBlur(line_width))
    alpha = np.array(share.point(_OUTLINE_ALPHA))
    around = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    alpha[framed & ~np.pad(around, 1)] = 255  # the border itself: all that there is of an object too thin for a line
    above, before = max(0, margin - top), max(0, margin - left)  # what the margin has beyond the canvas
    drawn = canvas[top + above - margin :, left + before - margin :]
    alpha = alpha[above:, before:][: drawn.shape[0], : drawn.shape[1]]
    at = np.nonzero(alpha)
    share_of_line = alpha[at][:, None] / 255
    drawn[at] = np.rint(share_of_line * colour + (1 - share_of_line) * drawn[at])


def _draw_box(picture: PIL.Image.Image, box_in_original: list[float], line_width: int, is_dashed: bool) -> None:
    x1, y1, x2, y2 = box_in_original
    right, bottom = max(x1, min(x2, picture.width) - 1), max(y1, min(y2, picture.height) - 1)  # last pixels inside
    draw, edges = PIL.ImageDraw.Draw(picture), (max(x1, 0), max(y1, 0), right, bottom)
    if not is_dashed:
        draw.rectangle(edges, outline=BOX_COLOUR, width=line_width)
        return
    frame = PIL.Image.new("L", picture.size)
    PIL.ImageDraw.Draw(frame).rectangle(edges, outline=255, width=line_width)
    rows, columns = np.indices((picture.height, picture.width), sparse=True)
    is_dash = (rows + columns) // (_DASH_WIDTHS * line_width) % 2 == 0  # along either axis, dash and gap alternate
    draw.bitmap((0, 0), PIL.Image.fromarray(np.asarray(frame) * is_dash.astype(np.uint8)), fill=BOX_COLOUR)


def _draw_words(picture: PIL.Image.Image, words: str) -> None:
    """Words on a strip at the bottom, as large as fits."""
    size = max(_SMALLEST_WORDS, picture.height / 24)
    wanted = PIL.ImageFont.load_default(size).getlength(words)
    size = max(_SMALLEST_WORDS, size * min(1, 0.96 * picture.width / wanted))
    draw, font, top = PIL.ImageDraw.Draw(picture), PIL.ImageFont.load_default(size), picture.height - 1.5 * size
    draw.rectangle((0, top, picture.width, picture.height), fill=FLAG_COLOUR)
    draw.text((picture.width / 2, top + 0.75 * size), words, fill=BOX_COLOUR, font=font, anchor="mm")
