from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from amsam_med.data.readers import read_image, read_mask
from pipelines.cards import robustness
from pipelines.cards.reporting import read_scores
from pipelines.cards.robustness import NO_LESION, UNCHANGED, VARIANTS, Photo, Variant

VARIANT = {variant.name: variant for variant in VARIANTS}


def photo_of(lesion: tuple[int, int, int, int], size: tuple[int, int] = (160, 120)) -> Photo:
    """A dark rectangle on a coloured ramp, x1, y1, x2, y2."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([90 + columns / 2, 120 + rows / 2, np.full(columns.shape, 200)], axis=2).astype(np.uint8)
    truth = np.zeros(columns.shape, dtype=np.uint8)
    truth[lesion[1] : lesion[3], lesion[0] : lesion[2]] = 255
    pixels[truth > 0] = 30
    return Photo(Image.fromarray(pixels), Image.fromarray(truth))


def changed(name: str, photo: Photo) -> Photo:
    change = VARIANT[name].change
    assert change is not None
    result = change(photo, np.random.default_rng(0), 0)
    assert result is not None
    return result


def write_one(folder: Path, photo: Photo) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    photo.image.save(folder / "a.png")
    photo.truth.save(folder / "a-mask.png")
    return {"image": str(folder / "a.png"), "label": str(folder / "a-mask.png")}


@pytest.mark.parametrize(("number", "orientation"), [(0, 3), (1, 6), (2, 8)])
def test_a_reader_that_obeys_exif_sees_the_same_picture(tmp_path: Path, number: int, orientation: int) -> None:
    photo = photo_of((20, 30, 70, 60))
    items = [write_one(tmp_path / "in", photo)] * (number + 1)
    robustness._write_one(VARIANT["exif"], number, items[-1], _folders(tmp_path / "exif"))
    file = tmp_path / "exif/images/a.jpg"
    with Image.open(file) as stored:
        assert stored.getexif()[robustness.ORIENTATION_TAG] == orientation
        assert stored.size == ((160, 120) if orientation == 3 else (120, 160))
    difference = np.abs(read_image(file).pixels.transpose(1, 2, 0).astype(int) - np.asarray(photo.image).astype(int))
    assert difference.mean() < 3  # what JPEG does
    assert (read_mask(tmp_path / "exif/masks/a.png") == (np.asarray(photo.truth) > 0)).all()


def _folders(folder: Path) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("name", "factor"), [("half", 0.5), ("double", 2)])
def test_image_and_truth_keep_one_size(name: str, factor: float) -> None:
    result = changed(name, photo_of((20, 30, 70, 60)))
    assert result.image.size == result.truth.size == (160 * factor, 120 * factor)
    assert (np.asarray(result.truth) > 0).mean() == pytest.approx(50 * 30 / (160 * 120))


def test_brightness_is_multiplied() -> None:
    photo = photo_of((20, 30, 70, 60))
    before = np.asarray(photo.image).astype(float)
    for name, factor in (("darker", 0.7), ("brighter", 1.3)):
        after = np.asarray(changed(name, photo).image).astype(float)
        np.testing.assert_allclose(after, np.minimum(factor * before, 255), atol=1)


def test_grey_has_one_channel() -> None:
    assert changed("grey", photo_of((20, 30, 70, 60))).image.mode == "L"


def test_hair_darkens_a_good_part_of_the_picture_and_leaves_the_rest() -> None:
    photo = photo_of((20, 30, 70, 60))
    difference = np.asarray(photo.image).astype(int) - np.asarray(changed("hair", photo).image)
    is_covered = difference.max(axis=2) > 40
    assert 0.05 < is_covered.mean() < 0.6
    assert (difference == 0).all(axis=2).mean() > 0.2


def test_the_black_circle_hides_the_corners_of_image_and_truth() -> None:
    result = changed("vignette", photo_of((0, 0, 160, 120)))
    image, truth = np.asarray(result.image), np.asarray(result.truth) > 0
    assert not image[0, 0].any()
    assert image[60, 80].any()
    assert truth.mean() == pytest.approx(np.pi * (0.48 * 120) ** 2 / (160 * 120), rel=0.01)


def test_a_lesion_that_the_black_circle_hides_is_left_out() -> None:
    assert robustness.look_through_dermatoscope(photo_of((0, 0, 5, 5)), np.random.default_rng(0), 0) is None


def test_a_tight_crop_touches_the_lesion_on_all_sides() -> None:
    result = changed("tight-crop", photo_of((20, 30, 70, 60)))
    assert result.image.size == (50, 30)
    assert np.asarray(result.truth).all()


def test_plain_skin_is_the_largest_square_beside_the_lesion() -> None:
    is_lesion = np.zeros((120, 300), dtype=bool)
    is_lesion[:, :100] = True
    box = robustness.largest_free_square(is_lesion, robustness.SKIN_MARGIN_PX)
    assert box is not None
    x1, y1, x2, y2 = box
    assert x2 - x1 == y2 - y1 == 119  # the largest odd side
    assert x1 >= 100 + robustness.SKIN_MARGIN_PX
    assert 0 <= y1 < y2 <= 120


def test_images_without_room_for_plain_skin_are_left_out() -> None:
    rng = np.random.default_rng(0)
    assert robustness.crop_to_skin(photo_of((40, 0, 60, 120)), rng, 0) is None
    assert robustness.largest_free_square(np.ones((20, 20), dtype=bool), robustness.SKIN_MARGIN_PX) is None


def test_the_unchanged_variant_is_the_file_itself_and_nothing_is_written_twice(tmp_path: Path) -> None:
    item = write_one(tmp_path / "in", photo_of((20, 30, 70, 60)))
    [(image, _)] = robustness.write_variant(VARIANT[UNCHANGED], [item], tmp_path / "out")
    assert image.read_bytes() == Path(item["image"]).read_bytes()
    before = image.stat().st_mtime_ns
    robustness.write_variant(VARIANT[UNCHANGED], [item], tmp_path / "out")
    assert image.stat().st_mtime_ns == before


def test_strong_compression_makes_a_small_file(tmp_path: Path) -> None:
    item = write_one(tmp_path / "in", photo_of((20, 30, 70, 60)))
    sizes = [
        robustness.write_variant(variant, [item], tmp_path / variant.name)[0][0].stat().st_size
        for variant in (VARIANT["jpeg-20"], Variant("best", "", robustness.keep))
    ]
    assert sizes[0] < sizes[1]


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """Two synthetic images as the test part of ISIC 2018, large enough for a square of plain skin."""
    from amsam_med.synthetic import write_dermoscopy

    write_dermoscopy(tmp_path / "data/isic2018/test", 2, seed=3, size=(256, 384))
    return tmp_path / "data"


def test_a_run_scores_all_variants_and_its_table_comes_from_the_records(
    isic: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", str(isic), "-o", str(tmp_path / "out"), "--bundle", str(tiny_bundle)]
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- begin robustness -->\nold\n<!-- end robustness -->\nafter\n")
    result = CliRunner().invoke(robustness.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    masks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*_segmentation.png")}
    assert len(masks) == len(list((tmp_path / "out").glob("*/masks/*.png"))) >= 2 * (len(VARIANTS) - 1)
    with monkeypatch.context() as patch:  # a second run finds everything done; these show it for all
        patch.setattr(robustness, "VARIANTS", [VARIANT[name] for name in (UNCHANGED, "exif", NO_LESION)])
        result = CliRunner().invoke(robustness.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert masks == {path: path.stat().st_mtime_ns for path in masks}
    rendered = ["table", "-o", str(tmp_path / "out"), "--document", str(document)]
    assert CliRunner().invoke(robustness.main, rendered, catch_exceptions=False).exit_code == 0
    page = document.read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert all(f"| {variant.what} |" in page for variant in VARIANTS if variant.name != NO_LESION)
    unchanged = read_scores(tmp_path / "out" / UNCHANGED / "scores.csv")
    assert f"{100 * np.mean([entry.dice for entry in unchanged]):.1f} (" in page
    assert str(tmp_path) not in page


def test_the_table_of_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- begin robustness -->\n<!-- end robustness -->\n")
    result = CliRunner().invoke(robustness.main, ["table", "-o", str(tmp_path), "--document", str(document)])
    assert result.exit_code == 1
    assert "lacks unchanged" in result.output
