"""A cache of image embeddings, and the data set of encoded images.

The image encoder is frozen, so the same image always has the same embedding. :class:`EmbeddingCache` keeps embeddings
in memory or in a folder, under a key made from the image and the encoder. :class:`EncodedDataset` encodes a few-shot
data list and its views before training starts, so an epoch runs the decoder only.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.engines.utils import PrepareBatchExtraInput
from monai.utils.type_conversion import convert_to_tensor
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from amsam_med.boxes import BoxDetector, box_from_mask, full_image_box, jitter_boxes
from amsam_med.errors import ConfigError, DataError
from amsam_med.files import atomic_path
from amsam_med.keys import Keys
from amsam_med.views import ViewKind, view_boxes, view_image, views_of

VIEW = "view"
"""int: which of the eight views an item is; 0 is the image itself."""
INDEX = "index"
"""int: the item's position in the data list."""
HAS_BOX = "has_box"
"""bool: whether the network is given the item's box."""

CACHE_FORMAT = 1
"""Part of every key: raise it when a change of an encoder's code changes the embeddings from equal weights."""
ENTRY = "embedding"


class EmbeddingCache:
    """Embeddings of a frozen encoder, each computed at most once.

    A key is the sha256 of the image (values, dtype and shape) below the sha256 of the encoder (class, parameters and
    buffers). So other weights have other keys, even if they change while the cache exists (except by writing through
    ``.data``, which torch does not record). Files of other encoders in the folder are neither used nor removed. A
    folder may come from somebody else: its files hold only tensors, and an entry that is not a finite float32 embedding
    is encoded anew.

    Args:
        encoder: Images float32 ``(B, 3, S, S)`` in [0, 1] to embeddings ``(B, 256, h, w)``. It runs on its own device,
            in evaluation mode and without gradients; its modes are restored afterwards.
        folder: Where to keep embeddings between runs, one file each; None for memory. Several processes may share it.
        batch_size: Images per batch of the encoder.

    Raises:
        ConfigError: A batch size below 1.
    """

    def __init__(self, encoder: nn.Module, folder: str | Path | None = None, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}; expected 1 or more images at once")
        self.encoder = encoder
        self.batch_size = batch_size
        self._store = _MemoryStore() if folder is None else _FolderStore(Path(folder))
        self._weights_seen: tuple[tuple[int, int], ...] | None = None
        self._encoder_key = ""

    def get(self, images: Tensor) -> Tensor:
        """Embeddings of N images.

        Args:
            images: float32 ``(N, 3, S, S)`` in [0, 1], on any device.

        Returns:
            float32 ``(N, 256, h, w)`` on the CPU.
        """
        return torch.stack(self.entries(images))

    def entries(self, images: Tensor) -> list[Tensor]:
        """As :meth:`get`, one float32 ``(256, h, w)`` per image; from a folder they are memory-mapped, not copied."""
        keys = [f"{self._current_encoder_key()}/{_image_key(image)}" for image in images]
        embeddings = {key: stored for key in set(keys) if (stored := self._store.read(key)) is not None}
        # A dict, so that equal images in one call are encoded once: a blank image has eight equal views.
        missing = [*{key: image for key, image in zip(keys, images, strict=True) if key not in embeddings}.items()]
        for start in range(0, len(missing), self.batch_size):
            batch_keys, batch = zip(*missing[start : start + self.batch_size], strict=True)
            for key, embedding in zip(batch_keys, self._encode(torch.stack(batch)), strict=True):
                embeddings[key] = self._store.write(key, embedding)
        return [embeddings[key] for key in keys]

    def _encode(self, images: Tensor) -> Tensor:
        # no_grad, not inference_mode: inference tensors could not enter the decoder's graph.
        with _evaluating(self.encoder), torch.no_grad():
            embeddings: Tensor = self.encoder(images.to(_device_of(self.encoder)))
        return embeddings.float().cpu()

    def _current_encoder_key(self) -> str:
        """The encoder's sha256, computed again when one of its tensors was replaced or written to."""
        # Hashing a large encoder takes a second. Torch raises a tensor's _version at every in-place write, so address
        # and version together show cheaply whether the hash is still valid.
        tensors = [*self.encoder.parameters(), *self.encoder.buffers()]
        seen = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if seen != self._weights_seen:
            self._weights_seen, self._encoder_key = seen, _encoder_key(self.encoder)
        return self._encoder_key


class PrepareBoxes(PrepareBatchExtraInput):
    """MONAI's ``prepare_batch`` that passes the boxes to the network, unless they are withheld (``box_dropout``).

    The network takes boxes for all images of a batch or for none, so the batch's first item decides.
    """

    def __init__(self) -> None:
        super().__init__({"boxes": Keys.BOX.value})

    def __call__(
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[Any, ...], dict[str, Any]]:
        """Images, labels, no positional arguments, and ``{"boxes": float (B, 4)}`` or ``{}`` as keyword arguments."""
        image, label, _, named = super().__call__(batchdata, device, non_blocking, **kwargs)
        is_shown = HAS_BOX not in batchdata or bool(batchdata[HAS_BOX][0])  # other data sets withhold nothing
        return image, label, (), named if is_shown else {}


class _Case(NamedTuple):
    """One element of the data list, encoded."""

    embeddings: list[Tensor]  # one float32 (256, h, w) per view
    boxes: Tensor  # float32 (views, 4), xyxy pixels of the model input, in the frame of each view
    label: Tensor  # uint8 (1, S, S), view 0


class EncodedDataset(Dataset[dict[str, Any]]):
    """A data list whose images and their views are encoded when the dataset is built.

    An item is ``{"image": embedding float32 (256, h, w), "label": uint8 (1, S, S), "box": float32 (4,) xyxy pixels of
    the model input, "view": int, "index": int, "has_box": bool}``; items of the same case are adjacent. The embedding
    is the stored one, not a copy: do not write to it.

    Args:
        data: What ``transform`` takes, such as ``{"image": path, "label": path}``.
        transform: To ``{"image": float32 (3, S, S) in [0, 1], "label": (1, S, S) class ids}``. It is applied once, so
            it must not be random.
        encoder: See :class:`EmbeddingCache`.
        detector: Finds the box in each view's image; without one the box is the label's (the whole image's for an empty
            label).
        views: "all" for the eight flips and rotations of each image, "mirror" for the image and its left-right mirror,
            "none" for the image alone.
        folder: See :class:`EmbeddingCache`.
        box_jitter: See ``amount`` of :func:`amsam_med.boxes.jitter_boxes`; drawn for each item from torch's global
            generator. 0 leaves boxes as they are.
        box_dropout: Share of items in [0, 1] whose box is withheld; drawn from the same generator.
        progress: Called with (encoded cases, all cases) after each batch of cases.

    Raises:
        ConfigError: Unknown ``views``, a negative ``box_jitter``, or a ``box_dropout`` that is no share.
        DataError: No data, or images and labels of other shapes than above.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        encoder: nn.Module,
        detector: BoxDetector | None = None,
        views: ViewKind = "all",
        folder: str | Path | None = None,
        box_jitter: float = 0.0,
        box_dropout: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if box_jitter < 0:
            raise ConfigError(f"box_jitter is {box_jitter}; expected a share of the box's size, 0 (off) or more")
        if not 0 <= box_dropout <= 1:
            raise ConfigError(f"box_dropout is {box_dropout}; expected a share of the items, from 0 to 1")
        if len(data) == 0:
            raise DataError("the data list is empty; expected at least one image with its label; check the data folder")
        self.box_jitter = box_jitter
        self.box_dropout = box_dropout
        self.views = views_of(views)
        self.view_count = len(self.views)
        self._cases = list(self._encode(data, transform, EmbeddingCache(encoder, folder), detector, progress))

    def __len__(self) -> int:
        return len(self._cases) * self.view_count

    def __getitem__(self, item: int) -> dict[str, Any]:
        if not 0 <= item < len(self):  # also ends a plain loop over the dataset
            raise IndexError(f"item {item} of {len(self)}")
        index, position = divmod(item, self.view_count)
        case, view = self._cases[index], self.views[position]
        size = case.label.shape[-1]
        box = case.boxes[position : position + 1]
        if self.box_jitter > 0:
            box = jitter_boxes(box, self.box_jitter, (size, size))
        return {
            Keys.IMAGE: case.embeddings[position],
            Keys.LABEL: view_image(case.label, view).clone(memory_format=torch.contiguous_format),
            Keys.BOX: box[0].clone(),
            VIEW: view,
            INDEX: index,
            # No number is drawn if none is needed: trainings without dropout keep the random numbers they always had.
            HAS_BOX: self.box_dropout == 0 or float(torch.rand(())) >= self.box_dropout,
        }

    def _encode(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        cache: EmbeddingCache,
        detector: BoxDetector | None,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[_Case]:
        cases_at_once = max(1, cache.batch_size // self.view_count)  # all views of a case are stacked into one batch
        for start in range(0, len(data), cases_at_once):
            pairs = [_load(transform, data[i], i) for i in range(start, min(start + cases_at_once, len(data)))]
            views = torch.stack([view_image(image, view) for image, _ in pairs for view in self.views])
            embeddings = cache.entries(views)  # cases * views
            boxes = self._label_boxes([label for _, label in pairs]) if detector is None else _detect(detector, views)
            for number, (_, label) in enumerate(pairs):
                own = slice(number * self.view_count, (number + 1) * self.view_count)
                yield _Case(embeddings[own], boxes[own], label)
            if progress is not None:
                progress(start + len(pairs), len(data))

    def _label_boxes(self, labels: Sequence[Tensor]) -> Tensor:
        """The boxes of uint8 ``(1, S, S)`` labels in all views: float32 ``(cases * views, 4)``."""
        boxes = []
        for label in labels:
            size = label.shape[-1]
            box = box_from_mask(label[0])
            box = full_image_box((size, size)) if box is None else box
            boxes += [view_boxes(box, view, size) for view in self.views]
        return torch.stack(boxes)


class ViewSampler(DistributedSampler[int]):
    """One random view of each case per epoch, in random order; both depend on the seed and the epoch alone.

    So an epoch has as many steps as there are cases, with views or without. MONAI's engines call ``set_epoch`` of any
    ``DistributedSampler``, which is why this is one even in a single process: a resumed run gets the same items.

    Args:
        dataset: The cases and their views.
        num_replicas: Number of processes that share the cases.
        rank: Number of this process, from 0.
        seed: Seed of order and views.
    """

    def __init__(self, dataset: EncodedDataset, num_replicas: int = 1, rank: int = 0, seed: int = 0) -> None:
        self.view_count = dataset.view_count
        cases = range(len(dataset) // dataset.view_count)
        super().__init__(cases, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        """Indices of items: a view of each of this process's cases."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        views = torch.randint(self.view_count, (len(self.dataset),), generator=generator)  # type: ignore[arg-type]
        return iter([case * self.view_count + int(views[case]) for case in super().__iter__()])


class _MemoryStore:
    """Embeddings in a dict."""

    def __init__(self) -> None:
        self._embeddings: dict[str, Tensor] = {}

    def read(self, key: str) -> Tensor | None:
        return self._embeddings.get(key)

    def write(self, key: str, embedding: Tensor) -> Tensor:
        self._embeddings[key] = embedding.clone()  # not a view that keeps its whole batch alive
        return self._embeddings[key]


class _FolderStore:
    """Embeddings as ``<encoder key>/<image key>.safetensors``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> Tensor | None:
        """The entry, memory-mapped; None if it is missing, damaged, or not a finite float32 ``(c, h, w)``."""
        try:
            if not stat.S_ISREG(self._path(key).stat().st_mode):  # reading a pipe would never end
                return None
            embedding = load_file(self._path(key))[ENTRY]
        except (OSError, SafetensorError, KeyError):
            return None
        is_embedding = embedding.dtype == torch.float32 and embedding.ndim == 3 and embedding.numel() > 0
        return embedding if is_embedding and bool(embedding.isfinite().all()) else None

    def write(self, key: str, embedding: Tensor) -> Tensor:
        """Write the entry atomically: other processes see all of it or nothing, even if this one is interrupted."""
        path = self._path(key)
        with atomic_path(path) as unfinished:
            save_file({ENTRY: embedding.contiguous()}, unfinished)
        return load_file(path)[ENTRY]  # memory-mapped, as read() returns it

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _image_key(image: Tensor) -> str:
    return _hash_tensors([("image", image)])


def _encoder_key(encoder: nn.Module) -> str:
    kind = f"format {CACHE_FORMAT}, {type(encoder).__module__}.{type(encoder).__qualname__}"
    # named_buffers, not the state dict: some buffers, such as a pixel mean, are not saved in it.
    return _hash_tensors([*encoder.named_parameters(), *encoder.named_buffers()], kind)


def _hash_tensors(named_tensors: Sequence[tuple[str, Tensor]], kind: str = "") -> str:
    """Sha256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256(kind.encode())
    for name, tensor in named_tensors:
        # Type and shape too: the same bytes can be another tensor.
        digest.update(f"|{name}:{tensor.dtype}:{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(transform: Callable[[Any], Any], element: Mapping[str, Any], index: int) -> tuple[Tensor, Tensor]:
    """Image float32 ``(3, S, S)`` and label uint8 ``(1, S, S)`` of one element, as plain tensors."""
    loaded = transform(dict(element))
    image = convert_to_tensor(loaded[Keys.IMAGE], dtype=torch.float32, track_meta=False)
    label = convert_to_tensor(loaded[Keys.LABEL], dtype=torch.uint8, track_meta=False)
    size = image.shape[-1]
    if image.shape != (3, size, size) or label.shape != (1, size, size):
        raise DataError(
            f"element {index} of the data list became an image of shape {tuple(image.shape)} and a label of shape "
            f"{tuple(label.shape)}; expected (3, S, S) and (1, S, S); let the transform resize both to the model input"
        )
    return image, label


def _detect(detector: BoxDetector, images: Tensor) -> Tensor:
    """The detector's boxes for float32 ``(N, 3, S, S)``: float32 ``(N, 4)`` on the CPU."""
    device = _device_of(detector) if isinstance(detector, nn.Module) else images.device
    with torch.no_grad():
        return detector(images.to(device)).boxes.float().cpu()


def _device_of(module: nn.Module) -> torch.device:
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every submodule is back in its own mode."""
    # One by one, as a network in training may have frozen submodules in evaluation mode; train() would change those.
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training
