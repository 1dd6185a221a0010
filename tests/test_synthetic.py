"""The synthetic images: the same for a seed, and their masks are where the lesions are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from amsam_med.errors import ConfigError
from amsam_med.synthetic import SyntheticImage, draw_dermoscopy, write_dermoscopy
from amsam_med.synthetic.fields import cellular_noise, fractal_noise, step
from amsam_med.synthetic.skin import FITZPATRICK_MELANIN
from amsam_med.synthetic.strokes import cover, line
from amsam_med.synthetic.tissue import Tissue, colour_of

SMALL = (64, 80)


@pytest.fixture(scope="module")
def drawings() -> list[SyntheticImage]:
    """Forty small images with lesions."""
    return [draw_dermoscopy(seed, SMALL) for seed in range(40)]


def ring_around(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The skin beside a lesion: pixels three to eight steps away from it."""
    near, far = (ndimage.binary_dilation(mask, iterations=steps) for steps in (3, 8))
    return np.asarray(far & ~near)


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (65, 33), (96, 40)])
def test_pixels_and_mask_have_the_size_asked_for(size: tuple[int, int]) -> None:
    pixels, mask = draw_dermoscopy(3, size)
    assert pixels.shape == (3, *size)
    assert mask.shape == size
    assert pixels.dtype == mask.dtype == np.uint8


def test_the_default_size_is_384_by_512() -> None:
    assert draw_dermoscopy(0).pixels.shape == (3, 384, 512)


def test_the_same_seed_draws_the_same_image() -> None:
    first, second = draw_dermoscopy(11, SMALL), draw_dermoscopy(11, SMALL)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_the_same_seed_draws_the_same_image_in_another_process() -> None:
    code = (
        "import hashlib; from amsam_med.synthetic import draw_dermoscopy;"
        f"print(hashlib.sha256(draw_dermoscopy(11, {SMALL}).pixels.tobytes()).hexdigest())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == hashlib.sha256(draw_dermoscopy(11, SMALL).pixels.tobytes()).hexdigest()


def test_every_seed_draws_another_image(drawings: list[SyntheticImage]) -> None:
    assert len({drawn.pixels.tobytes() for drawn in drawings}) == len(drawings)


def test_numpy_s_global_random_state_is_neither_used_nor_changed() -> None:
    before = draw_dermoscopy(5, SMALL).pixels
    np.random.seed(1)  # noqa: NPY002 - the legacy state is what must not matter
    state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    np.testing.assert_array_equal(draw_dermoscopy(5, SMALL).pixels, before)
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], state)  # noqa: NPY002


def test_the_mask_is_one_piece_without_holes_of_zeros_and_ones(drawings: list[SyntheticImage]) -> None:
    for drawn in drawings:
        assert set(np.unique(drawn.mask)) == {0, 1}
        assert ndimage.label(drawn.mask)[1] == 1
        np.testing.assert_array_equal(ndimage.binary_fill_holes(drawn.mask), drawn.mask.astype(bool))


def test_lesions_cover_from_a_thirtieth_to_three_fifths_of_the_image(drawings: list[SyntheticImage]) -> None:
    coverage = np.array([drawn.mask.mean() for drawn in drawings])
    assert coverage.min() > 1 / 30
    assert coverage.max() < 0.6
    assert coverage.max() / coverage.min() > 3


def test_a_lesion_differs_visibly_in_colour_from_the_skin_beside_it(drawings: list[SyntheticImage]) -> None:
    for drawn in drawings:
        inside = drawn.pixels[:, drawn.mask == 1].mean(axis=1)
        beside = drawn.pixels[:, ring_around(drawn.mask)].mean(axis=1)
        assert np.abs(inside - beside).max() > 10


def test_a_lesion_changes_the_image_inside_its_mask_and_hardly_outside() -> None:
    for seed in range(10):
        drawn, bare = draw_dermoscopy(seed, SMALL), draw_dermoscopy(seed, SMALL, has_lesion=False)
        change = np.abs(drawn.pixels.astype(float) - bare.pixels).max(axis=0)
        far = ~ndimage.binary_dilation(drawn.mask, iterations=12)
        assert change[drawn.mask == 1].mean() > 4 * change[far].mean()


def test_without_a_lesion_the_mask_is_empty() -> None:
    assert not draw_dermoscopy(2, SMALL, has_lesion=False).mask.any()


def test_skins_differ_in_brightness(drawings: list[SyntheticImage]) -> None:
    brightness = [drawn.pixels[:, ring_around(drawn.mask)].mean() for drawn in drawings]
    assert max(brightness) - min(brightness) > 80


def test_some_images_are_seen_through_a_round_lens_and_most_are_not(drawings: list[SyntheticImage]) -> None:
    dark = [drawn for drawn in drawings if drawn.pixels[:, :3, :3].max() < 60]
    assert 3 < len(dark) < 20


def test_the_mask_ends_where_the_lens_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw_dermoscopy(1, SMALL).mask
    right_half = np.repeat(np.arange(80) >= 40, 64).reshape(80, 64).T.astype(np.float32)
    monkeypatch.setattr("amsam_med.synthetic.dermoscopy.field_of_view", lambda rng, size: right_half)
    assert whole[:, :40].any()
    np.testing.assert_array_equal(draw_dermoscopy(1, SMALL).mask, whole * (right_half > 0))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed is -1; expected a whole number of 0 or more"):
        draw_dermoscopy(-1)


def test_an_image_too_small_for_a_lesion_is_refused() -> None:
    with pytest.raises(ConfigError, match="size is 64 x 31 pixels; expected at least 32 x 32"):
        draw_dermoscopy(0, (64, 31))


def test_written_files_are_colour_jpegs_and_black_and_white_png_masks(tmp_path: Path) -> None:
    items = write_dermoscopy(tmp_path, 3, seed=4, size=SMALL)
    assert len(items) == 3
    for item in items:
        with Image.open(item["image"]) as image, Image.open(item["label"]) as label:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 64))
            assert (label.format, label.mode, label.size) == ("PNG", "L", (80, 64))
            assert set(np.unique(np.asarray(label))) == {0, 255}


def test_file_names_follow_from_seed_and_position(tmp_path: Path) -> None:
    items = write_dermoscopy(tmp_path, 2, seed=7, size=SMALL)
    assert [item["image"] for item in items] == [
        str(tmp_path / "images" / "synthetic_0007_0000.jpg"),
        str(tmp_path / "images" / "synthetic_0007_0001.jpg"),
    ]
    assert items[1]["label"] == str(tmp_path / "masks" / "synthetic_0007_0001.png")


def test_a_longer_series_begins_with_the_shorter_one(tmp_path: Path) -> None:
    short = write_dermoscopy(tmp_path / "short", 1, seed=0, size=SMALL)
    long = write_dermoscopy(tmp_path / "long", 2, seed=0, size=SMALL)
    assert Path(short[0]["image"]).read_bytes() == Path(long[0]["image"]).read_bytes()


def test_two_seeds_share_no_image(tmp_path: Path) -> None:
    items = [item for seed in (0, 1) for item in write_dermoscopy(tmp_path, 4, seed, size=SMALL)]
    assert len({Path(item["image"]).read_bytes() for item in items}) == 8


def test_a_negative_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="count is -2"):
        write_dermoscopy(tmp_path, -2, seed=0)


def test_noise_has_mean_zero_and_deviation_one() -> None:
    rng = np.random.default_rng(0)
    for field in (fractal_noise(rng, SMALL, 0.4), cellular_noise(rng, SMALL, 0.1)):
        assert field.dtype == np.float32
        assert field.mean() == pytest.approx(0, abs=1e-4)
        assert field.std() == pytest.approx(1, abs=1e-3)


def test_cellular_noise_repeats_at_its_period() -> None:
    field = cellular_noise(np.random.default_rng(0), (128, 128), 1 / 16, spread=0.1)
    power = np.abs(np.fft.fft2(field)) ** 2
    frequency = np.hypot(np.fft.fftfreq(128)[:, None] * 128, np.fft.fftfreq(128)[None] * 128)
    assert (power * frequency).sum() / power.sum() == pytest.approx(16, rel=0.05)


def test_a_soft_step_is_half_at_its_threshold() -> None:
    values = np.array([[-10.0, 2.0, 10.0]], dtype=np.float32)
    np.testing.assert_allclose(step(values, 2.0, 0.5), [[0, 0.5, 1]], atol=1e-6)


def test_a_line_covers_its_length_times_its_width() -> None:
    horizontal = line((0.5, 0.2), (0.5, 0.8), 0.05)
    covered = cover([horizontal], (200, 200)).coverage.sum()
    # 120 pixels long and 10 wide, with half a disc of diameter 10 at each end.
    assert covered == pytest.approx(120 * 10 + np.pi * 5**2, rel=0.02)


def test_no_strokes_cover_nothing() -> None:
    assert not cover([], SMALL).coverage.any()


def test_more_melanin_is_darker_and_browner() -> None:
    nothing = np.zeros((1, len(FITZPATRICK_MELANIN)), dtype=np.float32)
    melanin = np.array([FITZPATRICK_MELANIN], dtype=np.float32)
    red, _, blue = colour_of(Tissue(melanin, nothing, nothing, nothing))[:, 0]
    assert (np.diff(red) < 0).all()
    assert (np.diff(red / blue) > 0).all()


def test_colour_by_hand() -> None:
    one, zero = np.ones((1, 1), dtype=np.float32), np.zeros((1, 1), dtype=np.float32)
    red = colour_of(Tissue(melanin=one, blood=zero, veil=zero, scar=zero))[0]
    assert float(red[0, 0]) == pytest.approx(0.95 * np.exp(-1.0), rel=1e-6)
