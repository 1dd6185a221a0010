from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from amsam_med import weights
from amsam_med.model import build_amsam
from amsam_med.model.amsam import Prediction
from amsam_med.model.encoders import CompactImageEncoder
from pipelines.weights import pretrain, scenes
from pipelines.weights.imagenet import load_imagenet_weights
from pipelines.weights.scenes import IDS, PASTED, Bank, Items, Scene, Source

SIZE = 64


def disc(size: int, x: float, y: float, radius: float) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def a_scene(has_whole: bool) -> Scene:
    """One image with the parts 1, 2 and 3."""
    ids = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8)
    for part, (x, y) in enumerate(((16, 16), (48, 16), (32, 48)), start=1):
        ids[0, 0][disc(SIZE, x, y, 10)] = part
    whole = torch.zeros(1, IDS, dtype=torch.bool)
    whole[:, 1:] = has_whole
    return Scene(torch.rand(1, 3, SIZE, SIZE), ids, whole, torch.zeros(1, dtype=torch.bool))


NOTHING_HERE = a_scene(has_whole=False)._replace(
    ids=torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8), is_empty=torch.ones(1, dtype=torch.bool)
)


def test_each_prompt_fits_its_own_target() -> None:
    torch.manual_seed(0)
    for _ in range(10):
        groups = pretrain.draw_prompts(a_scene(has_whole=True), 4)
        for group in groups:
            targets = group.targets[:, 0].bool()
            if group.points is not None:
                assert group.labels is not None
                for target, points, labels in zip(targets, group.points.long(), group.labels, strict=True):
                    assert [int(target[y, x]) for x, y in points] == labels.tolist()
                    assert labels[0] == 1
            if group.boxes is not None:
                for target, box in zip(targets, group.boxes, strict=True):
                    inside = target[int(box[1]) : int(box[3]) + 1, int(box[0]) : int(box[2]) + 1]
                    assert inside.sum() > 0.6 * target.sum()
        assert sum(len(group.image) for group in groups) <= 4


def test_an_image_without_a_whole_is_never_asked_for_without_a_prompt() -> None:
    groups = pretrain.draw_prompts(a_scene(has_whole=False), 4)
    assert all(group.boxes is not None or group.points is not None for group in groups)
    assert sum(len(group.image) for group in groups) == 3  # each part once


def test_where_there_is_nothing_no_prompt_and_a_false_box_ask_for_an_empty_mask() -> None:
    without, with_box = pretrain.draw_prompts(NOTHING_HERE, 4)
    assert not without.targets.any()
    assert (without.boxes, without.points) == (None, None)
    assert with_box.boxes is not None
    assert (with_box.boxes[:, 2:] > with_box.boxes[:, :2]).all()


def test_a_mask_that_is_to_be_empty_costs_what_is_in_it_and_a_false_box_its_certainty_alone() -> None:
    without, with_box = pretrain.draw_prompts(NOTHING_HERE, 4)
    losses = {}
    for name, logit, trust in (("right", -5.0, 0.0), ("drawn", 5.0, 0.0), ("sure", -5.0, 1.0)):
        logits = torch.stack([torch.zeros(1, 16, 16), torch.full((1, 16, 16), logit)], dim=1)
        answer = Prediction(logits, torch.full((1, 2), trust))
        loss = [pretrain.prompt_loss(answer, prompts, torch.nn.Identity()) for prompts in (without, with_box)]
        losses[name] = torch.stack(loss)
    assert losses["drawn"][0] > losses["sure"][0] > losses["right"][0]
    assert losses["sure"][1] > losses["drawn"][1] == losses["right"][1]


def test_a_square_of_skin_shows_nothing_of_the_lesion() -> None:
    size = scenes.BANK_SIZE
    is_lesion = disc(size, 60, 60, 50)[None, None]
    photo = Items(
        torch.where(is_lesion, 0, 200).expand(1, 3, -1, -1).to(torch.uint8),
        is_lesion.to(torch.uint8),
        torch.ones(1, IDS, dtype=torch.bool),
        torch.zeros(1, dtype=torch.bool),
    )
    for seed in range(5):
        torch.manual_seed(seed)
        square = scenes.cut_skin(photo)
        assert square is not None
        assert square.is_empty.all()
        assert square.images.min() == 200
    everywhere = Items(photo.images, torch.ones_like(photo.ids), photo.whole, photo.is_empty)
    assert scenes.cut_skin(everywhere) is None


def test_what_a_black_circle_hides_is_no_part_of_an_object() -> None:
    torch.manual_seed(0)
    ids = torch.ones(64, 1, SIZE, SIZE, dtype=torch.uint8)
    scene = Scene(torch.ones(64, 3, SIZE, SIZE), ids, torch.ones(64, IDS, dtype=torch.bool), torch.zeros(64))
    seen = scenes.add_dark_circles(scene)
    is_dark = seen.images.amax(dim=1, keepdim=True) < scenes.HIDDEN
    assert torch.equal(seen.ids == 0, is_dark)
    assert 0 < int(is_dark.flatten(1).any(dim=1).sum()) < 32


def test_the_second_round_points_at_an_error_and_says_what_is_there() -> None:
    torch.manual_seed(0)
    [group] = pretrain.draw_prompts(a_scene(has_whole=True), 1)
    logits = torch.zeros(1, 2, SIZE // 4, SIZE // 4)
    logits[:, 1] = -1.0  # nothing found: only the object is missing
    again = pretrain.second_round(group, Prediction(logits, torch.zeros(1, 2)))
    assert again.labels is not None
    assert again.points is not None
    assert again.labels.tolist() == [[1]]
    x, y = (again.points[0, 0] / 4).long().tolist()
    assert pretrain._at_logits(group.targets)[0, 0, y, x] == 1
    assert again.earlier_logits is not None
    assert torch.equal(again.earlier_logits, torch.full((1, 1, SIZE // 4, SIZE // 4), -1.0))


def test_an_earlier_mask_and_its_point_change_the_answer() -> None:
    torch.manual_seed(0)
    network = build_amsam("tiny", input_size=SIZE, rank=0, calibration="none").eval()
    embedding = torch.rand(1, 256, SIZE // 16, SIZE // 16)
    earlier = torch.randn(1, 1, SIZE // 4, SIZE // 4)
    with torch.no_grad():
        plain, improved = network(embedding), network.predict(embedding, earlier_logits=earlier).mask_logits
    assert not torch.allclose(plain, improved)


def test_the_interior_point_of_a_ring_lies_on_the_ring() -> None:
    ring = disc(SIZE, 32, 32, 28) & ~disc(SIZE, 32, 32, 14)
    x, y = pretrain.interior_point(ring).long().tolist()
    assert ring[y, x]
    assert abs(np.hypot(x - 31.5, y - 31.5) - 21) < 3


def test_two_pasted_people_are_both_the_whole() -> None:
    torch.manual_seed(0)
    size = scenes.BANK_SIZE
    person = Items(
        torch.full((1, 3, size, size), 200, dtype=torch.uint8),
        disc(size, size / 2, size / 2, 60)[None, None].to(torch.uint8),
        torch.ones(1, IDS, dtype=torch.bool),
        torch.zeros(1, dtype=torch.bool),
    )
    scenery = Items(
        torch.zeros(1, 3, size, size, dtype=torch.uint8),
        torch.zeros(1, 1, size, size, dtype=torch.uint8),
        torch.zeros(1, IDS, dtype=torch.bool),
        torch.zeros(1, dtype=torch.bool),
    )
    both = scenes.paste(person, scenes.paste(person, scenery))
    assert set(both.ids.unique().tolist()) <= {0, 1, 2}
    assert 2 in both.ids
    assert both.whole[0, 1:3].all()
    is_bright = both.images[0].amin(dim=0) > 100
    agreement = (is_bright == (both.ids[0, 0] > 0)).float().mean()
    assert agreement > 0.97


def flat(level: int) -> Items:
    """An image of one grey without an object."""
    size = scenes.BANK_SIZE
    return Items(
        torch.full((1, 3, size, size), level, dtype=torch.uint8),
        torch.zeros(1, 1, size, size, dtype=torch.uint8),
        torch.zeros(1, IDS, dtype=torch.bool),
        torch.zeros(1, dtype=torch.bool),
    )


def test_every_blob_is_marked_where_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SPOTTED_SHARE", 0.0)
    torch.manual_seed(0)
    for _ in range(10):
        one = scenes.paste_blob(flat(200), flat(20))
        shows = (one.images[0, 0].float() - 200).abs()
        assert ((shows > scenes.OUTLINE * shows.max()) == (one.ids[0, 0] == 1)).float().mean() > 0.99
        assert 0.01 < (one.ids == 1).float().mean() < 0.7
        assert one.whole[0].nonzero().tolist() == [[1]]
    two = scenes.paste_blob(one, flat(120))
    assert two.whole[0].nonzero().tolist() == [[1], [2]]
    assert (two.ids == 2).any()


def test_a_spot_changes_the_colour_within_a_blob_and_not_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    for share in (0.0, 1.0):
        monkeypatch.setattr(scenes, "SPOTTED_SHARE", share)
        torch.manual_seed(0)
        blobs = [scenes.paste_blob(flat(100), flat(160)) for _ in range(5)]
        assert all(blob.whole[0].nonzero().tolist() == [[1]] for blob in blobs)
        # A plain blob on plain ground is grey throughout; a spot has a shade of its own in every channel.
        tints = [blob.images[0, 0].float() - blob.images[0, 2].float() for blob in blobs]
        assert any(bool(tint.any()) for tint in tints) == bool(share)


def test_a_grey_image_stays_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(scenes, "GREY_SHARE", 1.0)
    monkeypatch.setattr(scenes, "BUBBLES_SHARE", 0.0)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # no noise
    images = scenes.recolour(torch.rand(4, 3, SIZE, SIZE))
    torch.testing.assert_close(images[:, 0], images[:, 1])
    torch.testing.assert_close(images[:, 0], images[:, 2])


def test_a_blob_of_what_it_lies_on_is_given_a_contrast() -> None:
    torch.manual_seed(0)
    for level in (30, 128, 220):
        blob = scenes.paste_blob(flat(level), flat(level))
        inside = blob.images[0, 0][blob.ids[0, 0] == 1].float()
        assert (inside - level).abs().mean() / 255 > 0.7 * scenes.LEAST_CONTRAST


def test_a_texture_is_a_part_of_its_photo_without_an_object() -> None:
    torch.manual_seed(0)
    photo = flat(0)
    photo.images[0, 0] = torch.linspace(0, 255, scenes.BANK_SIZE).to(torch.uint8)
    texture = scenes.cut_texture(Items(photo.images, photo.ids + 1, ~photo.whole, photo.is_empty))
    assert texture.images.shape == photo.images.shape
    span = int(texture.images[0, 0].max()) - int(texture.images[0, 0].min())
    assert span <= 255 * (scenes.PATCH_SIDES[1] + 2) / scenes.BANK_SIZE
    assert not texture.ids.any()
    assert not texture.whole.any()


def test_hair_darkens_or_lightens_only_where_it_lies() -> None:
    torch.manual_seed(0)
    overlays = scenes.draw_overlays(6)
    assert overlays.shape == (6, 1, scenes.BANK_SIZE, scenes.BANK_SIZE)
    assert all(0.001 < float((overlay > 127).float().mean()) < 0.5 for overlay in overlays)
    images = torch.full((64, 3, SIZE, SIZE), 0.5)
    laid = scenes.add_overlays(images, overlays)
    is_changed = (laid != images).flatten(1).any(dim=1)
    assert 0 < int(is_changed.sum()) < 32
    assert float((laid != images).any(dim=1)[is_changed].float().mean()) < 0.7


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Discs on noise, in folders named as the pipelines expect."""
    rng = np.random.default_rng(0)
    for folder in ("pretrain/ccp", "pretrain/person_cutouts", "pretrain/backgrounds"):
        (tmp_path / folder / "images").mkdir(parents=True)
        for number in range(14):
            pixels = rng.integers(0, 120, (96, 96, 3), dtype=np.uint8)
            mask = disc(96, *rng.uniform(35, 60, 2), 22).numpy()
            pixels[mask] += 100
            Image.fromarray(pixels).save(tmp_path / folder / "images" / f"{number}.png")
            if folder == "pretrain/ccp":
                (tmp_path / folder / "masks").mkdir(exist_ok=True)
                Image.fromarray(mask.astype(np.uint8)).save(tmp_path / folder / "masks" / f"{number}.png")
    sources = (Source("pretrain/ccp", turn=20.0),)
    monkeypatch.setattr(scenes, "SOURCES", sources)
    monkeypatch.setitem(scenes.MIXES, "tiny", {"pretrain/ccp": 0.8, PASTED: 0.2})
    monkeypatch.setattr(scenes, "OVERLAYS", 4)
    monkeypatch.setattr(pretrain, "STAGES", ((32, 0.5), (64, 1.0)))
    return tmp_path


@pytest.fixture
def counted_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by 0.4 s when it is read: a training has the same few steps on every machine."""
    ticks = itertools.count(step=0.4).__next__
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=ticks, process_time=ticks))


def test_the_average_forgets_how_a_short_run_began_and_remembers_in_a_long_one() -> None:
    update, average = pretrain.exponential_average(0.99), [torch.tensor([100.0])]
    for count in range(1, 51):
        update(average, [torch.tensor([1.0])], torch.tensor(count))
    assert float(average[0]) == pytest.approx(1.0, abs=0.01)
    update(average, [torch.tensor([101.0])], torch.tensor(10_000))
    assert float(average[0]) == pytest.approx(2.0, abs=0.01)


@pytest.mark.usefixtures("counted_time")
def test_a_run_is_continued_and_leaves_a_base(small_data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(small_data), "-o", str(tmp_path / "run"), "--batch-size", "2", "--sizes", "32", "64"]
    arguments += ["--encoder", "random", "--minutes"]
    first = CliRunner().invoke(pretrain.main, [*arguments, "0.05"], catch_exceptions=False)
    assert first.exit_code == 0
    assert "32 px from step 0" in first.output
    step = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert step > pretrain.AVERAGE_EVERY
    second = CliRunner().invoke(pretrain.main, [*arguments, "0.08"], catch_exceptions=False)
    assert "32 px from step 0" not in second.output
    assert f"64 px from step {step}\n" in second.output
    network = build_amsam("tiny", input_size=64, rank=0, base_weights=tmp_path / "run" / "tiny.safetensors")
    assert network.input_size == 64
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2
    other = CliRunner().invoke(pretrain.main, [*arguments, "0.09", "--prompts", "2"])
    assert other.exit_code == 1
    assert "give another folder" in other.output


@pytest.mark.usefixtures("counted_time")
def test_a_pretrained_backbone_keeps_its_first_stages_and_learns_the_others(small_data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(small_data), "-o", str(tmp_path / "run"), "--batch-size", "2", "--minutes", "0.05"]
    arguments += ["--input-size", "64", "--backbone", "tf_efficientnet_lite0", "--start", "tiny", "--ema", "0"]
    CliRunner().invoke(pretrain.main, arguments, catch_exceptions=False)
    trained = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["network"]
    encoder = CompactImageEncoder(64, False, "tf_efficientnet_lite0")
    load_imagenet_weights(encoder.backbone, "tf_efficientnet_lite0")
    is_kept = {name: torch.equal(trained[f"image_encoder.{name}"], part) for name, part in encoder.state_dict().items()}
    first = ("backbone.conv_stem", "backbone.bn1", "backbone.blocks.0.", "backbone.blocks.1.")
    assert all(kept for name, kept in is_kept.items() if name.startswith(first))
    assert not any(kept for name, kept in is_kept.items() if name.startswith("backbone.blocks.6"))
    assert is_kept["backbone.blocks.6.0.bn1.num_batches_tracked"] is False


@pytest.mark.usefixtures("counted_time")
def test_a_finished_base_goes_on_in_the_form_in_which_it_is_shipped(small_data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(small_data), "-o", str(tmp_path / "run"), "--batch-size", "2", "--minutes", "0.05"]
    arguments += ["--input-size", "64", "--encoder", "base"]
    refused = CliRunner().invoke(pretrain.main, arguments)
    assert refused.exit_code == 2
    assert "name the base with --start" in refused.output
    CliRunner().invoke(pretrain.main, [*arguments, "--start", "tiny", "--ema", "0"], catch_exceptions=False)
    began = build_amsam("tiny", rank=0, input_size=64, base_weights=weights.find("tiny")).state_dict()
    network = build_amsam("tiny", rank=0, input_size=64, base_weights=tmp_path / "run" / "tiny.safetensors")
    is_kept = {name: torch.equal(began[name], part) for name, part in network.state_dict().items()}
    frozen = (
        "image_encoder.backbone.conv_stem",
        "image_encoder.backbone.blocks.0.",
        "image_encoder.backbone.blocks.1.",
    )
    assert all(kept for name, kept in is_kept.items() if name.startswith(frozen))
    for part in ("image_encoder.backbone.blocks.6.", "image_encoder.neck.", "mask_decoder."):
        assert not all(kept for name, kept in is_kept.items() if name.startswith(part)), part
    change = network.state_dict()["image_encoder.neck.0.weight"] - began["image_encoder.neck.0.weight"]
    assert change.abs().max() < 0.02  # it went on from there


def test_a_point_beside_an_object_is_near_it_and_not_on_it() -> None:
    torch.manual_seed(0)
    targets = disc(SIZE, 20, 40, 8).float()[None, None].repeat(50, 1, 1, 1)
    pixel = pretrain._background_pixels(targets).flatten()
    rows, columns = pixel // SIZE, pixel % SIZE
    assert not any(bool(target[0, row, column]) for target, row, column in zip(targets, rows, columns, strict=True))
    is_near = disc(SIZE, 20, 40, 8 + 1.5 * (SIZE // 8))
    assert sum(bool(is_near[row, column]) for row, column in zip(rows, columns, strict=True)) >= 48


def test_a_bank_refuses_folders_that_it_does_not_know(small_data: Path) -> None:
    with pytest.raises(ValueError, match="the mix names elsewhere"):
        Bank(small_data, {"elsewhere": 1.0})
