"""AM-SAM: the paper's Figure 2 on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from amsam_med.errors import DataError
from amsam_med.model.calibration import MaskCalibration
from amsam_med.model.decoder import EMBEDDING_CHANNELS, MaskDecoder
from amsam_med.model.encoders import Below, CompactImageEncoder, SamImageEncoder
from amsam_med.model.prompt import PATCH, PromptEncoder


class Prediction(NamedTuple):
    """The masks of B images.

    Attributes:
        mask_logits: float ``(B, C + 1, S/4, S/4)``; a softmax over channels gives class probabilities.
        predicted_iou: float ``(B, C + 1)``: the network's own estimate of each mask's IoU.
    """

    mask_logits: Tensor
    predicted_iou: Tensor


class AmSam(nn.Module):
    """Image encoder, prompt encoder with the learned embedding A, LoRA mask decoder and mask calibration.

    Args:
        image_encoder: Images to embeddings; frozen in few-shot training but for what ``settings`` say is adapted.
        prompt_encoder: Boxes, points and A.
        mask_decoder: Embeddings and prompts to masks.
        calibration: The Hadamard-product calibration.
        settings: The arguments of ``build_amsam`` that define the network, for whoever saves it.
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
        """What few-shot training leaves as it is of the encoder: images to what :meth:`embed` takes in their place."""
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
        """Masks of B images and the network's trust in them.

        Args:
            image: RGB float ``(B, 3, S, S)`` in [0, 1], or what was encoded before: its embedding float
                ``(B, 256, S/16, S/16)``, or the encoder's features or trunk of it float ``(B, C, S/16, S/16)``.
            boxes: One box an image, float ``(B, 4)``, xyxy pixels of the model input; None for no box.
            points: float ``(B, N, 2)``, x and y in pixels of the model input.
            point_labels: ``(B, N)``: 1 foreground, 0 background, -1 padding.
            earlier_logits: float ``(B, 1, S/4, S/4)``: object minus background logits of a mask to improve.

        Raises:
            DataError: ``image`` is neither an image nor encoded for this network's size.
        """
        embedding = self.embed(image)
        sparse, dense = self.prompt_encoder(embedding.shape[0], boxes, points, point_labels, earlier_logits)
        decoded = self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense)
        mask_logits = self.calibration(decoded.mask_logits, decoded.upscaled, decoded.mask_vectors)
        return Prediction(mask_logits, decoded.predicted_iou)

    def embed(self, image: Tensor) -> Tensor:
        """Embed images, features or trunks; embeddings pass as they are. All else as for :meth:`predict`."""
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
