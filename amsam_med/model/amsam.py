"""AM-SAM: the paper's Figure 2 on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from amsam_med.boxes import box_from_mask, full_image_box, largest_parts
from amsam_med.errors import DataError
from amsam_med.model.calibration import MaskCalibration
from amsam_med.model.decoder import EMBEDDING_CHANNELS, MaskDecoder
from amsam_med.model.encoders import Below, CompactImageEncoder, SamImageEncoder
from amsam_med.model.prompt import PATCH, PromptEncoder

LARGE_PART = 0.2
"""A part of a mask is large if it has at least this share of the largest part's area."""
CENTRAL_SHARES = (0.35, 0.55, 0.75, 1.0)
"""Sides of the boxes around the image's centre that a network of prompt ``"own"`` tries, as shares of the image's."""


class Prediction(NamedTuple):
    """The masks of B images.

    Attributes:
        mask_logits: float ``(B, C + 1, S/4, S/4)``; a softmax over channels gives class probabilities.
        predicted_iou: float ``(B, C + 1)``: the network's own estimate of each mask's IoU.
    """

    mask_logits: Tensor
    predicted_iou: Tensor

    @property
    def object_iou(self) -> Tensor:
        """The mean predicted IoU of the objects' masks, without the background's: float ``(B,)``."""
        return self.predicted_iou[:, 1:].mean(dim=1)


class AmSam(nn.Module):
    """Image encoder, prompt encoder with the learned embedding A, LoRA mask decoder and mask calibration.

    Args:
        image_encoder: Images to embeddings; frozen in few-shot training, except for parts named in ``settings``.
        prompt_encoder: Boxes, points and A.
        mask_decoder: Embeddings and prompts to masks.
        calibration: The Hadamard-product calibration.
        settings: The arguments of ``build_amsam`` that define the network, to be saved with its weights.
    """

    def __init__(
        self,
        image_encoder: SamImageEncoder | CompactImageEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        calibration: MaskCalibration,
        settings: Mapping[str, str | int | float],
    ) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.calibration = calibration

    @property
    def frozen_encoder(self) -> nn.Module:
        """The part of the encoder that few-shot training does not adapt; :meth:`embed` also takes its output."""
        adapts = str(self.settings["adapts"])
        return self.image_encoder if adapts == "decoder" else Below(self.image_encoder, adapts)

    @property
    def input_size(self) -> int:
        """Side S of the square model input in pixels."""
        return self.image_encoder.input_size

    def forward(
        self,
        image: Tensor,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
    ) -> Tensor:
        """Mask logits of B images; see :meth:`predict` for the arguments.

        Returns:
            float ``(B, C + 1, S/4, S/4)``.
        """
        return self.predict(image, boxes, points, point_labels).mask_logits

    def predict(
        self,
        image: Tensor,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        earlier_logits: Tensor | None = None,
    ) -> Prediction:
        """Masks of B images, and their predicted IoUs.

        In evaluation mode, a network of prompt ``"own"`` that is given no prompt makes its own.

        Args:
            image: RGB float ``(B, 3, S, S)`` in [0, 1], or what was encoded before: its embedding float
                ``(B, 256, S/16, S/16)``, or the encoder's features or trunk of it float ``(B, C, S/16, S/16)``.
            boxes: One box per image, float ``(B, 4)``, xyxy pixels of the model input; None for no box.
            points: float ``(B, N, 2)``, x and y in pixels of the model input.
            point_labels: ``(B, N)``: 1 foreground, 0 background, -1 padding.
            earlier_logits: float ``(B, 1, S/4, S/4)``: object minus background logits of a mask to improve.

        Raises:
            DataError: ``image`` is neither an image nor encoded for this network's size.
        """
        embedding = self.embed(image)
        if boxes is None and points is None and earlier_logits is None and self.prompts_itself:
            return self._predict_by_own_boxes(embedding)
        return self._decode(embedding, boxes, points, point_labels, earlier_logits)

    @property
    def prompts_itself(self) -> bool:
        """Whether an image without a prompt is segmented with boxes that the network makes itself."""
        return self.settings["prompt"] == "own" and not self.training

    def _decode(
        self,
        embedding: Tensor,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        earlier_logits: Tensor | None = None,
    ) -> Prediction:
        sparse, dense = self.prompt_encoder(embedding.shape[0], boxes, points, point_labels, earlier_logits)
        decoded = self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense)
        mask_logits = self.calibration(decoded.mask_logits, decoded.upscaled, decoded.mask_vectors)
        return Prediction(mask_logits, decoded.predicted_iou)

    def _predict_by_own_boxes(self, embedding: Tensor) -> Prediction:
        """The mask that most prompts agree on, of those that need neither a person nor a detector.

        The candidates are the mask without a prompt, the one with the box around the largest parts of that mask, and
        those with boxes around the image's centre. The one with the highest product of predicted IoU and mean Dice with
        the others is returned: predicted IoU alone prefers small, dark objects; agreement alone ignores what the base
        knows of masks.
        """
        without = self._decode(embedding)
        own_boxes, is_found = self._boxes_of(without.mask_logits)
        candidates = [without, self._decode(embedding, own_boxes)]
        for share in CENTRAL_SHARES:
            margin, side = self.input_size * (1 - share) / 2, self.input_size * (1 + share) / 2
            box = embedding.new_tensor([margin, margin, side, side])
            candidates.append(self._decode(embedding, box.expand(len(embedding), 4)))
        trust = torch.stack([candidate.object_iou for candidate in candidates])  # (K, B)
        is_object = torch.stack([candidate.mask_logits.argmax(dim=1) != 0 for candidate in candidates])
        score = trust * _mean_dice_with_others(is_object)
        score[1] = score[1].where(is_found, -torch.inf)  # there was no box to draw it with
        best = score.argmax(dim=0)
        rows = torch.arange(len(best), device=best.device)
        return Prediction(*(torch.stack(parts)[best, rows] for parts in zip(*candidates, strict=True)))

    def _boxes_of(self, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes float ``(B, 4)`` around the largest parts of masks, and bool ``(B,)``: which masks have any."""
        size = (self.input_size, self.input_size)
        logits = interpolate(mask_logits.float(), size=size, mode="bilinear", align_corners=False)
        found = [box_from_mask(largest_parts(mask, LARGE_PART)) for mask in (logits.argmax(dim=1) != 0).cpu()]
        boxes = torch.stack([full_image_box(size) if box is None else box for box in found])
        is_found = torch.tensor([box is not None for box in found])
        return boxes.to(mask_logits.device), is_found.to(mask_logits.device)

    def embed(self, image: Tensor) -> Tensor:
        """Embed images, features or trunk outputs; embeddings are returned unchanged. See :meth:`predict`."""
        encoder, size, grid = self.image_encoder, self.input_size, self.input_size // PATCH
        shape = tuple(image.shape[1:])
        if shape == (EMBEDDING_CHANNELS, grid, grid):
            return image
        if shape == (encoder.feature_channels, grid, grid):
            of_features: Tensor = encoder.neck(image)
            return of_features
        if isinstance(encoder, CompactImageEncoder) and shape == (encoder.trunk_channels, grid, grid):
            of_trunk: Tensor = encoder.neck(encoder.stage(image))
            return of_trunk
        if shape != (3, size, size):
            raise DataError(
                f"the network got a tensor of shape {tuple(image.shape)}; expected images (B, 3, {size}, {size}) or "
                f"embeddings (B, {EMBEDDING_CHANNELS}, {grid}, {grid}); resize the images to {size} x {size} pixels"
            )
        embedding: Tensor = encoder(image)
        return embedding


def _mean_dice_with_others(is_object: Tensor) -> Tensor:
    """How well each of K masks of an image agrees with its others.

    Args:
        is_object: bool ``(K, B, h, w)``.

    Returns:
        float ``(K, B)``: the mean Dice with the K - 1 others; 0 with one of which both are empty.
    """
    masks = is_object.flatten(2).float()
    areas = masks.sum(dim=2)  # (K, B)
    shared = torch.einsum("kbp,lbp->klb", masks, masks)
    dice = 2 * shared / (areas[:, None] + areas[None]).clamp(min=1)
    own = dice.diagonal().T  # (K, B): 1, or 0 for an empty mask
    return (dice.sum(dim=1) - own) / (len(masks) - 1)
