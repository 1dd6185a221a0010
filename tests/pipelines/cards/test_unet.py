from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from amsam_med.learn.loss import SegmentationLoss
from amsam_med.synthetic import write_dermoscopy
from pipelines.cards import unet
from pipelines.cards.unet import Images, Run, Task, build_unet
from pipelines.weights.scenes import IDS, Items, Scene

SIZE = 64


def four_images(folder: Path) -> Items:
    write_dermoscopy(folder, 4, seed=0, size=(SIZE, SIZE))
    images, masks = (sorted((folder / name).iterdir()) for name in ("images", "masks"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in images]).transpose(0, 3, 1, 2)
    ids = np.stack([np.asarray(Image.open(path)) for path in masks])[:, None]
    whole = torch.ones(4, IDS, dtype=torch.bool)
    whole[:, 0] = False
    return Items(torch.from_numpy(pixels.copy()), torch.from_numpy(ids.copy()), whole, torch.zeros(4, dtype=torch.bool))


def test_it_learns_four_images_by_heart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    items = four_images(tmp_path)
    scene = Scene(items.images.float() / 255, *items[1:])
    network, loss_function = build_unet(), SegmentationLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=unet.PEAK_RATE)
    network.train()
    for _ in range(60):
        loss = unet.training_loss(network, scene, loss_function)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.train()  # batch statistics: 60 steps are few for the running ones
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(network(scene.images), size=(SIZE, SIZE), mode="bilinear")
    predicted, truth = logits.argmax(dim=1) == 1, items.ids[:, 0] > 0
    dice = 2 * (predicted & truth).sum((1, 2)) / (predicted.sum((1, 2)) + truth.sum((1, 2)))
    assert dice.min() > 0.9


def test_only_the_ids_of_the_whole_object_are_learned() -> None:
    torch.manual_seed(0)
    ids = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8)
    ids[..., :32, :], ids[..., 32:, :] = 1, 2
    whole = torch.zeros(1, IDS, dtype=torch.bool)
    whole[:, 2] = True

    class LowerHalf(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.full((1, 2, SIZE // 2, SIZE // 2), -20.0)
            logits[:, 0, :16], logits[:, 1, 16:] = 20, 20
            return logits

    scene = Scene(torch.rand(1, 3, SIZE, SIZE), ids, whole, torch.zeros(1, dtype=torch.bool))
    loss = unet.training_loss(LowerHalf(), scene, SegmentationLoss())
    assert float(loss) < 1e-3


def test_batches_come_from_the_sources_by_their_shares() -> None:
    torch.manual_seed(0)
    dark, bright = (
        Items(
            torch.full((2, 3, 288, 288), value, dtype=torch.uint8),
            torch.zeros(2, 1, 288, 288, dtype=torch.uint8),
            torch.zeros(2, IDS, dtype=torch.bool),
            torch.zeros(2, dtype=torch.bool),
        )
        for value in (0, 255)
    )
    images = Images({"a": dark, "b": bright}, {"a": (0.0, 0.55), "b": (0.0, 0.55)}, dark)
    scenes = [
        unet.draw_scene(images, {"a": 0.0, "b": 1.0}, unet.draw_overlays(6), 32, torch.device("cpu")) for _ in range(4)
    ]
    assert torch.cat([scene.images for scene in scenes]).mean() > 0.5
    assert scenes[0].images.shape == (unet.BATCH_SIZE, 3, 32, 32)


@pytest.fixture
def small_data(tmp_path: Path) -> Path:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        write_dermoscopy(tmp_path / "data/isic2018" / part, count, seed=count, size=(72, 96))
    return tmp_path / "data"


def test_a_run_trains_compares_and_continues(
    small_data: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unet, "STAGES", ((32, 0.4), (64, 1.0)))
    monkeypatch.setattr(unet, "INPUT_SIZE", 64)
    monkeypatch.setattr(unet, "OVERLAYS", 2)
    arguments = ["--data", str(small_data), "-o", str(tmp_path / "out"), "--set", "isic2018"]
    arguments += ["--bundle", str(tiny_bundle), "--device", "cpu"]
    result = CliRunner().invoke(unet.main, [*arguments, "--minutes", "0.05"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    table = result.output.split("| images |")[-1]
    assert "| U-Net, 0.05 min | 3 |" in table
    assert "tiny_bundle − U-Net, paired | 3 |" in table
    again = CliRunner().invoke(unet.main, [*arguments, "--minutes", "0.05"], catch_exceptions=False)
    assert "validation Dice" not in again.output  # its time is spent
    assert table in again.output
    other = CliRunner().invoke(unet.main, [*arguments, "--minutes", "0.1"])
    assert other.exit_code == 1
    assert "give another folder" in other.output


def test_what_is_restored_is_what_was_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, {"set": "a"}, torch.device("cpu"))
    run.step, run.elapsed, run.best_dice, run.validations = 7, 3.5, 0.5, 2
    with torch.no_grad():
        next(run.network.parameters()).fill_(0.25)
    run.save()
    restored = Run(tmp_path, {"set": "a"}, torch.device("cpu"))
    restored.restore()
    assert (restored.step, restored.elapsed, restored.best_dice, restored.validations) == (7, 3.5, 0.5, 2)
    assert (next(restored.network.parameters()) == 0.25).all()


def test_a_worse_validation_does_not_replace_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", {}, torch.device("cpu"))
    kept = []
    for dice in (0.5, 0.4, 0.6):
        monkeypatch.setattr(unet, "mean_dice", lambda *_, dice=dice: dice)
        with torch.no_grad():
            next(run.average.module.parameters()).fill_(dice)
        run.validate(Items(*[torch.empty(0)] * 4))
        network = build_unet()
        network.load_state_dict(torch.load(run.weights, weights_only=True))
        kept.append(float(next(network.parameters()).detach().flatten()[0]))
    assert kept == pytest.approx([0.5, 0.5, 0.6])


def test_where_there_is_no_validation_part_every_tenth_image_is_held_out(tmp_path: Path) -> None:
    write_dermoscopy(tmp_path / "human_vikram", 20, seed=0, size=(32, 32))
    write_dermoscopy(tmp_path / "pretrain/ccp", 3, seed=1, size=(32, 32))
    task = Task("human_vikram", {"human_vikram": 0.5, "pretrain/ccp": 0.5}, None, "amsam_body")
    images = unet.load_images(tmp_path, task)
    assert {folder: len(items) for folder, items in images.train.items()} == {"human_vikram": 18, "pretrain/ccp": 3}
    assert len(images.validation) == 2
    pairs = [(held == kept).all() for held in images.validation.images for kept in images.train["human_vikram"].images]
    assert not any(pairs)
