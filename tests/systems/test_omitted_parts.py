"""What a tower leaves out of its published model is stated with its parameters: with the tower's own, published totals."""

import dataclasses

import pytest
from torch import nn

from weft.encoders.clip import ClipText, ClipVision
from weft.encoders.cnn14 import Cnn14
from weft.encoders.eva_clip import EvaClipVision
from weft.encoders.mixture import Mixture
from weft.encoders.nfnet import Nfnet
from weft.encoders.resnet import Resnet
from weft.encoders.siglip import SiglipVision
from weft.encoders.whisper import Whisper
from weft.serving.recipe_view import _tree
from weft.systems.accounting import num_parameters, num_table_values, omitted, parts, without_values
from weft.systems.dual_encoder import DualEncoder

SO400M = SiglipVision.Config.sizes()["so400m-14-384"]
G_FOR_BLIP_2 = EvaClipVision.Config.sizes()["g-14-blip-2"]
PUBLISHED = {
    "CLIP B/32 with its projection": (ClipVision.Config.sizes()["b-32"], 87_849_216),
    "CLIP L/14 at 336 with its projection": (ClipVision.Config.sizes()["l-14-336"], 304_293_888),
    "SigLIP So400m without its head": (dataclasses.replace(SO400M, pooling_head=False), 428_225_600),
    "EVA-CLIP-g as BLIP-2 keeps it": (dataclasses.replace(G_FOR_BLIP_2, feature_norm_eps=None), 1_012_588_928),
    "ResNet-50 with its classifier": (Resnet.Config.sizes()["50"], 25_557_032),
    "ResNet-152 with its classifier": (Resnet.Config.sizes()["152"], 60_192_808),
    "CNN14 with its classifier": (Cnn14.Config.sizes()["panns"], 80_753_615),
    "CNN14 and the head of Microsoft's CLAP with the classifier": (
        Cnn14.Config.sizes()["clap-microsoft"], 80_753_615 + 1024 * (2048 + 1024 + 2),  # the head: two matrices and a norm
    ),
    "Whisper tiny with its decoder": (Whisper.Config.sizes()["tiny"], 37_760_640),
    "Whisper medium with its decoder": (Whisper.Config.sizes()["medium"], 763_857_920),
    "Whisper large-v3 with its decoder": (Whisper.Config.sizes()["large-v3"], 1_543_490_560),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_tables_and_what_is_omitted_give_the_published_total(name):
    config, published = PUBLISHED[name]
    with without_values():
        tower = config.build()
    assert omitted(config)
    assert num_parameters(tower) + num_table_values(tower) + sum(omitted(config).values()) == published


def test_the_two_towers_of_clip_and_what_they_omit_are_all_of_clip_but_its_temperature():
    media, text = ClipVision.Config.sizes()["b-32"], ClipText.Config.sizes()["b-32"]
    with without_values():
        towers = num_parameters(media.build()) + num_parameters(text.build())
    assert towers + omitted(media)["projection"] + omitted(text)["projection"] + 1 == 151_277_313


def test_nfnet_omits_the_classifier_of_a_thousand_classes():
    assert omitted(Nfnet.Config.sizes()["f0-192"]) == {"classifier": num_parameters(nn.Linear(3072, 1000))}


@pytest.mark.parametrize("config", [SiglipVision.Config.tiny(), EvaClipVision.Config()], ids=["SigLIP", "EVA-CLIP"])
def test_a_tower_with_its_head_omits_nothing(config):
    assert omitted(config) == {}


def test_a_part_made_of_encoders_omits_what_they_do():
    pair = Mixture.Config.sizes()["l-14"]
    assert omitted(pair) == {"first's projection": 1024 * 768}
    with without_values():
        (part,) = parts(nn.ModuleDict({"encoder": pair.build()}))
    assert part.omitted == omitted(pair)


def test_the_tree_names_what_is_omitted_except_where_the_system_has_it():
    def shown(system):
        return "\n".join(str(branch.label) for branch in _tree(None, system).children)

    tower = ClipVision.Config.sizes()["b-32"]
    with without_values():
        alone = nn.ModuleDict({"encoder": tower.build()})
        whole = DualEncoder.Config(media=tower, text=ClipText.Config(), embedding_width=512).build()
    assert "87,456,000, without the published projection (393,216)" in shown(alone)
    assert "without" not in shown(whole), "a dual encoder projects itself"
