"""An instruction goes with its medium from the sample to the projector."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_packing import sample

from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.data.collate import collate
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.inference.continuation import before, shared_prefix
from weft.language_models.decoder import Decoder
from weft.projectors.linear import Linear
from weft.systems.multimodal_lm import MultimodalLM, Stream


def asking(number: int, *instructions: list[int] | None):
    """A sample whose media have these instructions."""
    plain = sample(9, number, len(instructions))
    media = (
        replace(medium, instruction=None if tokens is None else np.array(tokens, dtype=np.int64))
        for medium, tokens in zip(plain.media["image"], instructions, strict=True)
    )
    return replace(plain, media={"image": tuple(media)})


def test_instructions_are_padded_behind_their_ends():
    batch = collate([asking(1, [7, 8], None), asking(2, [9, 9, 9])])
    assert batch.media["image"].instruction.tolist() == [[7, 8, -1], [-1, -1, -1], [9, 9, 9]]


def test_without_instructions_there_is_no_table_of_them():
    assert collate([asking(1, None), sample(5, 2)]).media["image"].instruction is None


def test_a_medium_is_encoded_once_for_every_instruction():
    one, same, other = asking(1, [7]), asking(1, [7]), asking(1, [8])
    batch = collate([one, same, other]).media["image"]
    assert batch.spans[:, 0].tolist() == [0, 0, 1]
    assert batch.instruction.tolist() == [[7], [8]]


def test_instructions_move_with_the_batch():
    batch = collate([asking(1, [7])]).to("meta")
    assert batch.media["image"].instruction.device.type == "meta"


def test_a_part_of_a_batch_keeps_the_instructions_of_its_media():
    batch = collate([asking(1, [7, 8], [5])])
    assert before(batch, 3).media["image"].instruction.tolist() == [[7, 8]]


@pytest.mark.parametrize(("asked", "shared"), [([7, 8], 8), ([7, 9], 1), ([7], 1), (None, 1)])
def test_what_a_cache_holds_of_a_medium_depends_on_its_instruction(asked, shared):
    stored, wanted = collate([asking(1, [7, 8])]), collate([asking(1, asked)])
    assert shared_prefix(stored, wanted) == shared


def test_a_projector_sees_the_instruction_of_the_batch_beside_features_that_are_known():
    stream = Stream.Config(encoder=ClipVision.Config.tiny(), projector=Linear.Config())
    config = MultimodalLM.Config(
        language_model=Decoder.Config.tiny(), streams={"image": stream}, fusions=(TokenConcatenation.Config(),)
    )
    system = config.build()
    batch = collate([asking(1, [7, 8]), asking(2, [9])])
    seen: list[MediaFeatures] = []

    class Watching(Linear):
        def forward(self, features: MediaFeatures) -> MediaTokens:
            seen.append(features)
            return super().forward(features)

    system.stream("image").projector = Watching(Linear.Config(), 64, 64)
    known = MediaFeatures(torch.zeros(2, 2, 64), torch.arange(2), (MediaLayout(1, 2),) * 2)
    system.project(batch, {"image": known})
    assert seen[0].instruction.tolist() == [[7, 8], [9, -1]]
