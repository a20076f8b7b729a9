"""EVA-CLIP's three kinds of blocks and NFNet against timm, where it imports: it needs torchvision, which Weft does not.

Their own test files hold them to references written from the papers, which always run.
"""

import dataclasses

import pytest
import torch
from reference_models import assert_close

from weft.checkpoints.eva_clip import EVA_CLIP_VISION
from weft.checkpoints.nfnet import NFNET
from weft.encoders.eva_clip import EvaClipVision
from weft.encoders.nfnet import Nfnet

timm = pytest.importorskip("timm", exc_type=ImportError)

SIDE, PATCH = 5, 6
PIXELS = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))
ITEMS = torch.arange(2)
EVA = {
    "pre_norm": {},
    "sub_norm": {
        "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "use_rot_pos_emb": True,
        "ref_feat_shape": (3, 3),
    },
    "residual_post_norm": {"use_post_norm": True},
}  # fmt: skip


def at_random(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter moved from its start, which hides gains of one and biases of zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("block", EVA)
def test_eva_clip_equals_timm(block):
    sizes = {"img_size": SIDE * PATCH, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    theirs = at_random(timm.models.eva.Eva(**sizes, num_classes=12, global_pool="token", **EVA[block]))
    config = EvaClipVision.Config(
        image_size=SIDE * PATCH, patch_size=PATCH, width=32, num_layers=2, num_heads=2, feed_forward_width=64, block=block,
        rotary_side=3 if block == "sub_norm" else None, embedding_width=12, feature_layer=-1, keep_class_token=True,
    )  # fmt: skip
    ours = config.build().eval()
    EVA_CLIP_VISION.key_map(config).load(ours, theirs.state_dict())
    with torch.no_grad():
        assert_close(ours.pool(PIXELS), theirs(PIXELS))
        hidden = theirs.forward_intermediates(
            PIXELS, output_fmt="NLC", norm=False, return_prefix_tokens=True, intermediates_only=True
        )
        for layer, (patches, classes) in enumerate(hidden, 1):
            tower = dataclasses.replace(config, feature_layer=layer).build().eval()
            tower.load_state_dict(ours.state_dict())
            assert_close(tower(PIXELS, ITEMS, (config.layout(),) * 2).values, torch.cat((classes, patches), 1))


@pytest.mark.parametrize("image_size", [64, 47], ids=["even grids", "odd grids"])
def test_nfnet_equals_timm_with_its_exact_activation_and_nothing_under_a_variance(image_size):
    network = {"depths": (1, 2, 3, 1), "channels": (16, 32, 64, 64), "stem_chs": 16, "group_size": 8, "num_features": 128}
    network["act_layer"] = "gelu"  # the exact form, all that timm runs
    published = timm.models.nfnet.model_cfgs["dm_nfnet_f0"]
    theirs = at_random(timm.models.nfnet.NormFreeNet(published, **network, std_conv_eps=1e-12, num_classes=0))
    config = NFNET.read_config(
        {
            "architecture": "dm_nfnet_f0",
            "model_args": network,
            "pretrained_cfg": {"input_size": [3, image_size, image_size]},
        }
    )
    ours = config.build().eval()
    assert isinstance(ours, Nfnet)
    NFNET.key_map(config).load(ours, theirs.state_dict())
    pixels = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        grid = theirs.forward_features(pixels)
        assert_close(ours(pixels, ITEMS, (config.layout(),) * 2).values, grid.flatten(2).transpose(1, 2))
        assert_close(ours.pool(pixels), theirs(pixels))
