"""Bases: SAM's own checkpoints at another input size, and ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from amsam_med.errors import WeightsError
from amsam_med.model import build as build_module
from amsam_med.model import build_amsam
from amsam_med.model.encoders import CompactImageEncoder, SamImageEncoder, VitSize

SMALL_VIT = VitSize(width=32, depth=3, heads=2, global_blocks=(1,))


@pytest.fixture
def small_sam(monkeypatch: pytest.MonkeyPatch) -> Sam:
    """A SAM of 3 narrow blocks at 128 pixels, with all the parts and names of the real one."""
    monkeypatch.setitem(build_module.VIT_SIZES, "vit_b", SMALL_VIT)
    encoder = ImageEncoderViT(
        128, 16, 3, 32, 3, 2, out_chans=256, use_rel_pos=True, window_size=14, global_attn_indexes=(1,)
    )
    torch.nn.init.normal_(encoder.pos_embed)
    for block in encoder.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_h)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return Sam(
        encoder, PromptEncoder(256, (8, 8), (128, 128), 16), MaskDecoder(transformer_dim=256, transformer=transformer)
    )


def _state_without_statistics(sam: Sam) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in sam.state_dict().items() if not name.startswith("pixel_")}


def test_a_sam_checkpoint_loads_everything_but_its_four_mask_heads(small_sam: Sam, tmp_path: Path) -> None:
    torch.save(_state_without_statistics(small_sam), tmp_path / "sam.pth")
    network = build_amsam("vit_b", input_size=128, base_weights=tmp_path / "sam.pth")
    own, sams = network.state_dict(), small_sam.state_dict()
    loaded = [name for name in sams if name in own and torch.equal(own[name], sams[name])]
    left_out = {name for name in sams if name not in loaded}
    assert any("rel_pos_h" in name for name in loaded)
    assert all("mask_tokens" in n or "hypernetworks" in n or "iou_prediction_head" in n for n in left_out)


def test_position_tables_are_interpolated_to_the_input_size(small_sam: Sam, tmp_path: Path) -> None:
    torch.save(_state_without_statistics(small_sam), tmp_path / "sam.pth")
    encoder = build_amsam("vit_b", input_size=64, base_weights=tmp_path / "sam.pth").image_encoder
    assert isinstance(encoder, SamImageEncoder)
    assert encoder.pos_embed.shape == (1, 4, 4, 32)
    naive = small_sam.image_encoder.pos_embed.unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(-2, -1))
    torch.testing.assert_close(encoder.pos_embed, naive)  # halving bilinearly = means of 2 x 2
    assert encoder.blocks[1].attn.rel_pos_h.shape[0] == 2 * 4 - 1
    assert encoder.blocks[0].attn.rel_pos_h.shape[0] == 2 * 14 - 1  # windows keep their size


def test_a_base_of_ours_is_taken_whole_for_one_class_and_without_heads_for_three(tmp_path: Path) -> None:
    base = build_amsam("tiny", input_size=64, rank=0, calibration="none")
    save_file(base.state_dict(), tmp_path / "tiny.safetensors")
    state = base.state_dict()
    same = build_amsam("tiny", input_size=64, base_weights=tmp_path / "tiny.safetensors").state_dict()
    more = build_amsam("tiny", input_size=64, num_classes=3, base_weights=tmp_path / "tiny.safetensors").state_dict()
    assert all(torch.equal(same[name], state[name]) for name in state)
    assert torch.equal(more["mask_decoder.iou_token.weight"], state["mask_decoder.iou_token.weight"])
    assert more["mask_decoder.mask_tokens.weight"].shape == (4, 256)


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_base_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="broken"):
        build_amsam("tiny", input_size=64, base_weights=path)


def test_a_base_of_another_network_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    save_file({"image_encoder.other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not hold this network"):
        build_amsam("tiny", input_size=64, base_weights=tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not exist"):
        build_amsam("tiny", input_size=64, base_weights=tmp_path / "nowhere.pth")


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite2", "tf_efficientnet_lite0"])
def test_merging_the_backbones_norms_keeps_the_function(backbone: str) -> None:
    torch.manual_seed(0)
    encoder = CompactImageEncoder(64, is_fused=False, backbone_name=backbone)
    for norm in (part for part in encoder.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        torch.nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder.eval()(image)
        torch.testing.assert_close(encoder.fuse()(image), before, rtol=1e-3, atol=1e-3)
    assert encoder.state_dict().keys() == CompactImageEncoder(64, backbone_name=backbone).state_dict().keys()
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in encoder.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_the_compact_encoder_becomes_torchscript_that_computes_the_same() -> None:
    torch.manual_seed(0)
    encoder, image = CompactImageEncoder(64).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(encoder)(image), encoder(image))
