from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from amsam_med.boxes import Detections, box_from_mask
from amsam_med.errors import ConfigError, DataError
from amsam_med.learn.cache import HAS_BOX, EmbeddingCache, EncodedDataset, PrepareBoxes, ViewSampler
from amsam_med.views import VIEW_COUNT, view_image

SIZE = 64


class CountingEncoder(nn.Module):
    """Embeds ``(B, 3, 64, 64)`` as ``(B, 4, 4, 4)`` and counts; its batch norm tells training from evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, kernel_size=16, stride=16)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("pixel_mean", torch.tensor(0.5), persistent=False)
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.batches.append(image.shape[0])
        return self.norm(self.patches(image - self.pixel_mean))


class BrightestHalf:
    """Finds the left or the right half, whichever is brighter; nothing in a black image."""

    def __call__(self, image: Tensor) -> Detections:
        left, right = image[..., : SIZE // 2].sum((1, 2, 3)), image[..., SIZE // 2 :].sum((1, 2, 3))
        start = torch.where(left >= right, 0.0, SIZE / 2)
        halves = torch.stack([start, 0 * start, start + SIZE / 2, 0 * start + SIZE], dim=1)
        is_detected = (left + right) > 0
        boxes = torch.where(is_detected[:, None], halves, torch.tensor([0.0, 0.0, SIZE, SIZE]))
        return Detections(boxes, is_detected.float(), is_detected)


@pytest.fixture
def encoder() -> CountingEncoder:
    torch.manual_seed(0)
    return CountingEncoder()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def example(number: int) -> dict[str, Any]:
    """A bright rectangle on a dark image, and its mask, as MONAI's transforms return them."""
    label = torch.zeros(1, SIZE, SIZE)
    label[:, 10 + number : 30, 4:20] = 1
    image = 0.1 * torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(number)) + 0.8 * label
    return {"image": MetaTensor(image), "label": MetaTensor(label)}


def dataset(encoder: nn.Module, count: int = 2, **options: Any) -> EncodedDataset:
    return EncodedDataset([{"number": n} for n in range(count)], lambda d: example(d["number"]), encoder, **options)


# ---------------------------------------------------------------------------------------------------- EmbeddingCache


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_embeddings_are_the_encoders_in_evaluation_mode(
    is_on_disk: bool, encoder: CountingEncoder, images: Tensor, tmp_path: Path
) -> None:
    embeddings = EmbeddingCache(encoder, tmp_path if is_on_disk else None, batch_size=2).get(images)
    assert encoder.batches == [2, 2, 1]
    torch.testing.assert_close(embeddings, encoder.eval()(images).detach())
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad


def test_the_encoder_is_left_in_the_modes_it_had(encoder: CountingEncoder, images: Tensor) -> None:
    encoder.train()
    encoder.norm.eval()
    EmbeddingCache(encoder).get(images)
    assert (encoder.training, encoder.patches.training, encoder.norm.training) == (True, True, False)


def test_an_image_is_encoded_once_however_often_it_is_asked_for(encoder: CountingEncoder, images: Tensor) -> None:
    cache = EmbeddingCache(encoder)
    first = cache.get(images[[0, 1, 0]])
    second = cache.get(images[[1, 2]])
    assert encoder.batches == [2, 1]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], second[0])


def test_a_folder_outlives_the_cache(encoder: CountingEncoder, images: Tensor, tmp_path: Path) -> None:
    first = EmbeddingCache(encoder, tmp_path).get(images)
    second = EmbeddingCache(encoder, str(tmp_path)).get(images)
    assert encoder.batches == [5]
    assert torch.equal(first, second)


@pytest.mark.parametrize("changed", ["patches.weight", "norm.running_mean", "pixel_mean"])
def test_other_weights_mean_other_entries(
    changed: str, encoder: CountingEncoder, images: Tensor, tmp_path: Path
) -> None:
    cache = EmbeddingCache(encoder, tmp_path)
    before = cache.get(images)
    tensor = dict([*encoder.named_parameters(), *encoder.named_buffers()])[changed].detach()
    original = tensor.clone()
    tensor.add_(0.5)
    assert not torch.equal(cache.get(images), before)
    tensor.copy_(original)
    assert torch.equal(cache.get(images), before)  # the first weights' entries are still there
    assert encoder.batches == [5, 5]


def test_shape_and_dtype_are_part_of_an_images_key(encoder: CountingEncoder) -> None:
    cache = EmbeddingCache(encoder)
    zeros = torch.zeros(1, 3, SIZE, SIZE)
    others = [zeros, zeros.int(), zeros.view(1, 3, SIZE // 2, SIZE * 2)]  # the same bytes three times
    assert [tuple(cache.get(other).shape[1:]) for other in others] == [(4, 4, 4), (4, 4, 4), (4, 2, 8)]
    assert encoder.batches == [1, 1, 1]


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign"])
def test_a_damaged_entry_is_computed_again(
    damage: str, encoder: CountingEncoder, images: Tensor, tmp_path: Path
) -> None:
    before = EmbeddingCache(encoder, tmp_path).get(images).clone()
    entries = sorted(tmp_path.rglob("*.safetensors"))
    assert len(entries) == 5
    content = entries[0].read_bytes()
    entries[0].unlink()
    entries[0].write_bytes({"empty": b"", "cut": content[:-10], "foreign": b"not a tensor at all"}[damage])
    assert torch.allclose(EmbeddingCache(encoder, tmp_path).get(images), before, atol=1e-6)
    assert encoder.batches == [5, 1]
    assert entries[0].stat().st_size == len(content)


@pytest.mark.parametrize(
    "foreign",
    [torch.full((4, 2, 2), torch.nan), torch.ones(4, 2, 2, dtype=torch.float16), torch.ones(4), torch.ones(4, 0, 2)],
    ids=["NaN", "16 bits", "flat", "empty"],
)
def test_an_entry_that_no_encoder_has_written_is_computed_again(
    foreign: Tensor, encoder: CountingEncoder, images: Tensor, tmp_path: Path
) -> None:
    before = EmbeddingCache(encoder, tmp_path).get(images).clone()
    entry = sorted(tmp_path.rglob("*.safetensors"))[0]
    entry.unlink()  # not in place: it is mapped into memory
    save_file({"embedding": foreign}, entry)
    assert torch.allclose(EmbeddingCache(encoder, tmp_path).get(images), before, atol=1e-6)
    entry.unlink()
    os.mkfifo(entry)
    assert torch.allclose(EmbeddingCache(encoder, tmp_path).get(images), before, atol=1e-6)


def test_an_interrupted_write_leaves_no_entry(
    encoder: CountingEncoder, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("amsam_med.files.os.replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(encoder, tmp_path).get(images)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_embeddings_can_enter_a_graph(encoder: CountingEncoder, images: Tensor) -> None:
    weight = torch.ones(4, requires_grad=True)
    (EmbeddingCache(encoder).get(images) * weight[:, None, None]).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().min() > 0


def test_embeddings_are_kept_in_float32_whatever_the_encoder_computes_in(images: Tensor) -> None:
    class Halving(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[:, :, ::16, ::16].half()

    assert EmbeddingCache(Halving()).get(images).dtype == torch.float32


def test_a_batch_of_no_image_is_refused(encoder: CountingEncoder) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        EmbeddingCache(encoder, batch_size=0)


# ---------------------------------------------------------------------------------------------------- EncodedDataset


def test_a_dataset_holds_every_view_of_every_case(encoder: CountingEncoder) -> None:
    items = list(dataset(encoder, count=3))
    assert [(item["index"], item["view"]) for item in items] == [(i, v) for i in range(3) for v in range(VIEW_COUNT)]
    assert len(dataset(encoder, count=3, views="none")) == 3


def test_an_item_is_made_of_plain_tensors_of_the_agreed_dtypes(encoder: CountingEncoder) -> None:
    item = dataset(encoder)[3]
    kinds = {key: (type(item[key]), item[key].dtype, tuple(item[key].shape)) for key in ("image", "label", "box")}
    assert kinds["image"] == (Tensor, torch.float32, (4, 4, 4))
    assert kinds["label"] == (Tensor, torch.uint8, (1, SIZE, SIZE))
    assert kinds["box"] == (Tensor, torch.float32, (4,))


@pytest.mark.parametrize("view", range(VIEW_COUNT))
def test_image_label_and_box_of_an_item_show_the_same_view(view: int, encoder: CountingEncoder) -> None:
    item, source = dataset(encoder)[VIEW_COUNT + view], example(1)
    seen = view_image(source["image"].as_tensor(), view)
    torch.testing.assert_close(item["image"], encoder.eval()(seen[None])[0].detach())
    assert torch.equal(item["label"], view_image(source["label"].as_tensor(), view).to(torch.uint8))
    assert torch.equal(item["box"], box_from_mask(item["label"][0]))


def test_mirror_views_are_the_image_and_its_mirror_image(encoder: CountingEncoder) -> None:
    data = dataset(encoder, views="mirror")
    items = list(data)
    assert [(item["index"], item["view"]) for item in items] == [(0, 0), (0, 4), (1, 0), (1, 4)]
    for item in items:
        source = example(item["index"])
        seen = view_image(source["image"].as_tensor(), item["view"])
        torch.testing.assert_close(item["image"], encoder.eval()(seen[None])[0].detach())
        assert torch.equal(item["label"], view_image(source["label"].as_tensor(), item["view"]).to(torch.uint8))
        assert torch.equal(item["box"], box_from_mask(item["label"][0]))
    epochs = [list(ViewSampler(data, seed=seed)) for seed in range(8)]
    assert all(sorted(item // 2 for item in epoch) == [0, 1] for epoch in epochs)
    assert {item for epoch in epochs for item in epoch} == {0, 1, 2, 3}


def test_each_view_is_encoded_once_and_before_training(encoder: CountingEncoder) -> None:
    data = dataset(encoder, count=3)
    assert encoder.batches == [VIEW_COUNT] * 3
    for _ in range(2):
        assert len(list(data)) == 3 * VIEW_COUNT
    assert encoder.batches == [VIEW_COUNT] * 3


def test_cases_without_views_are_encoded_in_batches_with_progress(encoder: CountingEncoder) -> None:
    told: list[tuple[int, int]] = []
    dataset(encoder, count=10, views="none", progress=lambda done, total: told.append((done, total)))
    assert encoder.batches == [8, 2]
    assert told == [(8, 10), (10, 10)]


def test_a_second_run_with_the_same_folder_encodes_nothing(encoder: CountingEncoder, tmp_path: Path) -> None:
    first = dataset(encoder, folder=tmp_path)
    encoder.batches.clear()
    second = dataset(encoder, folder=tmp_path)
    assert encoder.batches == []
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))


def test_a_detector_looks_at_each_view_and_may_find_nothing(encoder: CountingEncoder) -> None:
    left, right = dataset(encoder, count=1, detector=BrightestHalf())[0], dataset(encoder, detector=BrightestHalf())[4]
    assert left["box"].tolist() == [0.0, 0.0, 32.0, 64.0]
    assert right["box"].tolist() == [32.0, 0.0, 64.0, 64.0]  # view 4 is the mirror image
    black = {"image": torch.zeros(3, SIZE, SIZE), "label": example(0)["label"]}
    unseen = EncodedDataset([{}], lambda _: black, encoder, detector=BrightestHalf(), views="none")
    assert unseen[0]["box"].tolist() == [0.0, 0.0, 64.0, 64.0]


def test_an_empty_label_has_the_box_of_the_whole_image(encoder: CountingEncoder) -> None:
    empty = {"image": torch.rand(3, SIZE, SIZE), "label": torch.zeros(1, SIZE, SIZE)}
    boxes = [item["box"].tolist() for item in EncodedDataset([{}], lambda _: empty, encoder)]
    assert boxes == [[0.0, 0.0, 64.0, 64.0]] * VIEW_COUNT


def test_jitter_is_drawn_anew_from_the_global_generator(encoder: CountingEncoder) -> None:
    data = dataset(encoder, box_jitter=0.1)
    torch.manual_seed(4)
    first, second = data[0]["box"], data[0]["box"]
    torch.manual_seed(4)
    assert torch.equal(data[0]["box"], first)
    assert not torch.equal(first, second)
    assert torch.equal(data[0]["label"], dataset(encoder)[0]["label"])
    torch.manual_seed(4)
    half_as_far = dataset(encoder, box_jitter=0.05)[0]["box"]
    still = dataset(encoder)[0]["box"]
    torch.testing.assert_close(half_as_far - still, (first - still) / 2)


def test_a_share_of_boxes_is_withheld_and_drawn_anew(encoder: CountingEncoder) -> None:
    data = dataset(encoder, count=4, box_dropout=0.5)
    torch.manual_seed(0)
    first, second = ([item[HAS_BOX] for item in data] for _ in range(2))
    assert 8 <= sum(first) <= 24  # of 32 items
    assert first != second
    torch.manual_seed(0)
    assert [item[HAS_BOX] for item in data] == first


@pytest.mark.parametrize(("share", "has_box"), [(0.0, True), (1.0, False)])
def test_all_boxes_or_none(share: float, has_box: bool, encoder: CountingEncoder) -> None:
    assert all(item[HAS_BOX] is has_box for item in dataset(encoder, box_dropout=share))


def test_boxes_that_cannot_be_withheld_leave_the_random_numbers_alone(encoder: CountingEncoder) -> None:
    data, state = dataset(encoder), torch.get_rng_state()
    _ = data[0]
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(("share", "named"), [(0.0, {"boxes"}), (1.0, set())])
def test_a_withheld_box_does_not_reach_the_network(share: float, named: set[str], encoder: CountingEncoder) -> None:
    (batch,) = DataLoader(dataset(encoder, box_dropout=share, views="mirror"), batch_size=4)
    images, labels, further, given = PrepareBoxes()(batch, "cpu")
    assert images.shape == (4, 4, 4, 4)
    assert labels.shape == (4, 1, SIZE, SIZE)
    assert further == ()
    assert set(given) == named
    assert all(value.equal(batch["box"]) for value in given.values())
    del batch[HAS_BOX]
    assert set(PrepareBoxes()(batch, "cpu")[3]) == {"boxes"}


@pytest.mark.parametrize("first", [True, False])
def test_the_first_image_decides_whether_a_batch_has_boxes(first: bool, encoder: CountingEncoder) -> None:
    (batch,) = DataLoader(dataset(encoder, views="none"), batch_size=2)
    *_, given = PrepareBoxes()({**batch, HAS_BOX: torch.tensor([first, not first])}, "cpu")
    assert ("boxes" in given) is first


def test_the_share_of_withheld_boxes_is_the_one_asked_for(encoder: CountingEncoder) -> None:
    data = dataset(encoder, count=4, box_dropout=0.9)
    torch.manual_seed(0)
    assert sum(item[HAS_BOX] for item in data) <= 8  # of 32 items


def test_what_is_done_to_an_item_stays_there(encoder: CountingEncoder) -> None:
    data = dataset(encoder)
    item = data[0]
    item["box"] += 1
    item["label"] += 1
    assert not torch.equal(data[0]["box"], item["box"])
    assert not torch.equal(data[0]["label"], item["label"])


def test_items_collate_into_a_batch(encoder: CountingEncoder) -> None:
    batch = next(iter(DataLoader(dataset(encoder), batch_size=16)))
    assert {key: tuple(batch[key].shape) for key in batch} == {
        "image": (16, 4, 4, 4),
        "label": (16, 1, SIZE, SIZE),
        "box": (16, 4),
        "view": (16,),
        "has_box": (16,),
        "index": (16,),
    }


def test_unfit_data_are_refused(encoder: CountingEncoder) -> None:
    with pytest.raises(DataError, match="data list is empty"):
        dataset(encoder, count=0)
    grey = {"image": torch.zeros(1, SIZE, SIZE), "label": torch.zeros(1, SIZE, SIZE)}
    with pytest.raises(DataError, match=r"element 0 .* \(1, 64, 64\)"):
        EncodedDataset([{}], lambda _: grey, encoder)
    with pytest.raises(ConfigError, match=r"box_dropout is 1\.5"):
        dataset(encoder, box_dropout=1.5)
    with pytest.raises(ConfigError, match="box_jitter"):
        dataset(encoder, box_jitter=-0.1)
    with pytest.raises(ConfigError, match="views is 'some'"):
        dataset(encoder, views="some")


def test_an_item_beyond_the_end_does_not_exist(encoder: CountingEncoder) -> None:
    data = dataset(encoder)
    with pytest.raises(IndexError, match="item 16 of 16"):
        data[16]


def test_an_epoch_shows_one_view_of_each_case_and_the_next_epoch_others(encoder: CountingEncoder) -> None:
    sampler = ViewSampler(dataset(encoder, count=6), seed=3)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert all(sorted(item // VIEW_COUNT for item in items) == list(range(6)) for items in epochs)
    assert len({item % VIEW_COUNT for items in epochs for item in items}) > 4
    assert len({tuple(items) for items in epochs}) == 4
    sampler.set_epoch(2)
    assert list(sampler) == epochs[2]


def test_processes_share_the_cases_of_an_epoch(encoder: CountingEncoder) -> None:
    data = dataset(encoder, count=6)
    items = [item for rank in range(2) for item in ViewSampler(data, num_replicas=2, rank=rank)]
    assert sorted(items) == sorted(ViewSampler(data))
