"""An opened model segments an image as every other face does, whatever the image is given as."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from amsam_med import evaluate, open_model, segment, train
from amsam_med.bundle import training_overrides
from amsam_med.data.readers import read_image, read_mask
from amsam_med.errors import ConfigError, DataError, WeightsError
from amsam_med.opened_model import Clicks, Model
from amsam_med.options import TrainOptions
from amsam_med.trust import UntrustedBundleError


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return open_model(tiny_bundle, device="cpu")


@pytest.fixture
def photo(labelled_folder: Path) -> Path:
    return min((labelled_folder / "images").iterdir())


def test_masks_are_those_that_the_folder_run_writes(
    model: Model, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    summary = segment(
        labelled_folder / "images", tmp_path / "out", bundle=str(tiny_bundle), formats=("png",), device="cpu"
    )
    paths = sorted((labelled_folder / "images").iterdir())
    assert summary.done == len(paths) > 0
    for path in paths:
        written = read_mask(tmp_path / "out" / "masks" / f"{path.stem}_segmentation.png")
        assert np.array_equal(model.segment(path).mask, written)


def test_a_file_an_array_and_a_picture_in_memory_give_the_same(model: Model, photo: Path) -> None:
    of_file = model.segment(str(photo))
    of_array = model.segment(read_image(photo).pixels.transpose(1, 2, 0))
    with PIL.Image.open(photo) as picture:
        of_picture = model.segment(picture)
    for other in (of_array, of_picture):
        assert np.array_equal(of_file.mask, other.mask)
        assert (of_file.box, of_file.confidence, of_file.flags) == (other.box, other.confidence, other.flags)


def test_a_picture_in_memory_is_turned_as_its_exif_says(model: Model, tmp_path: Path, photo: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    with PIL.Image.open(photo) as upright:
        upright.save(tmp_path / "sideways.png", exif=exif)
    with PIL.Image.open(tmp_path / "sideways.png") as picture:
        found = model.segment(picture)
    assert np.array_equal(found.mask, model.segment(tmp_path / "sideways.png").mask)
    assert found.mask.shape == model.segment(photo).mask.T.shape


def test_a_result_has_the_images_frame_and_does_not_change(model: Model, photo: Path) -> None:
    found = model.segment(photo)
    assert (found.mask.shape, found.mask.dtype) == ((72, 96), np.uint8)
    assert found.box is None or len(found.box) == 4
    assert 0 <= found.confidence <= 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.box = None  # type: ignore[misc]


def test_a_given_box_is_obeyed(model: Model, photo: Path) -> None:
    found = model.segment(photo, box=np.array([10, 20, 60, 70]))
    assert (found.box, found.box_source, found.confidence) == ((10.0, 20.0, 60.0, 70.0), "user", 1.0)
    by_prompt = model.predict_prompted(model.prepare(photo), Clicks((10.0, 20.0, 60.0, 70.0)))
    assert np.array_equal(found.mask, model.restore(by_prompt))


def test_an_encoded_image_answers_clicks_as_the_image_does(model: Model, photo: Path) -> None:
    found = model.segment(photo, foreground=[(48, 36)], background=[(1, 1)])
    encoded = model.encode(model.prepare(photo))
    answer = model.predict_prompted(encoded, Clicks(foreground=[(48, 36)], background=[(1, 1)]))
    assert np.array_equal(found.mask, model.restore(answer))
    assert (found.box, found.box_source, found.confidence) == (None, "user", 0.0)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ({"box": (10, 10, 5, 5)}, r"the box \[10.0, 10.0, 5.0, 5.0\] is empty or outside"),
        ({"box": (1, 2, 3)}, "a box has 3 numbers; expected x1, y1, x2, y2"),
        ({"foreground": [(200, 10)]}, "a point is outside the picture of 96 x 72 pixels"),
    ],
)
def test_a_prompt_that_is_none_is_refused(model: Model, photo: Path, prompt: dict[str, object], text: str) -> None:
    with pytest.raises(DataError, match=text):
        model.segment(photo, **prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 8, 9), (8, 9), (8, 9, 4), (0, 9, 3)])
def test_an_array_of_another_shape_is_refused(model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"must be uint8 \(H, W, 3\) RGB; got uint8"):
        model.segment(np.zeros(shape, np.uint8))


def test_a_picture_that_cannot_be_decoded_is_named(model: Model, photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    with PIL.Image.open(photo) as whole:
        whole.save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with PIL.Image.open(path) as picture, pytest.raises(DataError, match=r"cut\.png: cannot be decoded"):
        model.segment(picture)


def test_a_network_without_prompts_refuses_them(tiny_bundle: Path, photo: Path) -> None:
    model = open_model(tiny_bundle, device="cpu", detector="none", overrides={"network_def::prompt": "none"})
    assert model.segment(photo).box_source == "none"
    with pytest.raises(ConfigError, match="trained with prompt none and looks at neither"):
        model.segment(photo, box=(10, 10, 50, 50))


def test_a_model_knows_its_labels_and_weights(model: Model) -> None:
    assert model.name == "tiny_bundle"
    assert [segment.label for segment in model.labels.segments]
    assert model.digests.keys() == {"model", "detector"}
    assert model.fingerprint["weights"] == model.digests


def test_a_bundle_is_opened_when_it_is_trusted(tiny_bundle: Path, tmp_path: Path) -> None:
    own = shutil.copytree(tiny_bundle, tmp_path / "own")
    with (own / "configs" / "inference.yaml").open("a") as stream:
        stream.write("mine: 1\n")
    with pytest.raises(UntrustedBundleError):
        open_model(own)
    assert open_model(own, device="cpu", trust_bundle=True).name == "own"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="got device='tpu9'; expected auto, cpu or cuda"):
        open_model(device="tpu9")


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    for verb in (segment, evaluate):
        with pytest.raises(ConfigError, match="unknown option bundel; known are bundle, adapter"):
            verb(tmp_path, tmp_path / "out", bundel="amsam_isic")


def test_a_run_with_an_own_bundle_is_one_call_after_another(
    tiny_bundle: Path, labelled_folder: Path, photo: Path, tmp_path: Path
) -> None:
    result = train(labelled_folder, tmp_path / "run", bundle=tiny_bundle, shots=2, epochs=1, device="cpu")
    base = tiny_bundle / "base.safetensors"
    scores = evaluate(
        labelled_folder, tmp_path / "out", bundle=tiny_bundle, adapter=result.adapter, base_weights=base, device="cpu"
    )
    assert scores.summary.images == 6
    with pytest.raises(WeightsError, match="was trained with bundle 'tiny_bundle', which is not one of the shipped"):
        open_model(adapter=result.adapter)
    model = open_model(tiny_bundle, adapter=str(result.adapter), base_weights=str(base), device="cpu")
    assert model.segment(photo).mask.shape == (72, 96)
    assert model.digests.keys() == {"base", "adapter", "detector"}


def test_training_without_boxes_needs_a_network_without_them() -> None:
    assert training_overrides(TrainOptions(prompt="none", shots=4))["detector_file"] is None
    with pytest.raises(ConfigError, match=r"needs a detector.*from Python prompt='own'"):
        training_overrides(TrainOptions(detector="none"))
