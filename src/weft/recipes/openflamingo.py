"""OpenFlamingo: CLIP's patches through a Perceiver into gated blocks between the layers of a frozen, open language model.

Source: arXiv:2308.01390 and its released script. 64 devices read 64 pairs of LAION-2B and 32 documents of MMC4 each a step, 180
million samples in all. The loss of a pair's token weighs 0.2 of a document's; the script weighs the mean losses of the two
sets so. Of MMC4 it takes the pictures of more than 10 kB that are like their sentences, six a document, half of the documents
with one picture, and teaches what stands behind pictures up to `<|endofchunk|>`. It cuts captions at 32 tokens, this recipe all
samples at 256. Five models were released: the two called `langinstruct` are the 3B and the 4B on instruction-tuned language
models of the same shapes, which `--from language_model=...` gives.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.core.interfaces import LanguageModel
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.datasets.mmc4 import Mmc4
from weft.data.desk.documents import DeskDocuments
from weft.data.images import ImageTransform
from weft.data.interleaving import Interleaving
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.fusion.cross_attention import CrossAttention, GatedDense
from weft.language_models.gpt_neox import GptNeox
from weft.language_models.mpt import Mpt
from weft.layers.added_tokens import AddedTokens
from weft.objectives.next_token import NextToken
from weft.projectors.perceiver import Perceiver
from weft.recipes.shrinking import TINY_VOCABULARY, desk_dialogues, on_desk, shrunk, with_fast_gates
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("3b", "4b", "9b")
TRAINED = ("streams.image.projector.*", "language_model.blocks.*.before_attention.*", "added_tokens.inputs.*")

VOCABULARY = 50_277
"""Tokens of the tokenizer that all its language models share; their tables are padded, and cut to it when two are added."""
EVERY = {"3b": 1, "4b": 2, "9b": 4}
BLOCK = GatedDense(num_heads=8, head_width=64, activation="gelu")
DOCUMENTS = Interleaving(opening="read", single_share=0.5)
DATA = Mixture.Config(
    parts={
        "laion": Mixture.Part(
            data=LlavaJson.Config(path="laion-2b/pairs.jsonl", images="laion-2b/images"),
            weight=64,
            loss_weight=0.2,
            template="flamingo_pair",
        ),
        "mmc4": Mixture.Part(
            data=Mmc4.Config(
                path="mmc4/docs_*.jsonl",
                images="mmc4/images",
                min_bytes=11_000,
                min_similarity=0.24,
                max_images=6,
                interleaving=DOCUMENTS,
                strict=False,
            ),
            weight=32,
        ),
    },
    epoch=180_000_000,
)


def openflamingo(size: str = "3b") -> Recipe:
    """OpenFlamingo at a published size: on MPT-1B, RedPajama-INCITE-3B or MPT-7B."""
    if size not in SIZES:
        raise unknown_name("size of openflamingo", size, SIZES)
    models: dict[str, LanguageModel.Config] = {
        "3b": replace(Mpt.Config.sizes()["mpt-1b-redpajama-200b"], vocabulary=VOCABULARY),
        "4b": replace(GptNeox.Config.sizes()["redpajama-incite-3b"], vocabulary=VOCABULARY),
        "9b": replace(Mpt.Config.sizes()["mpt-7b"], vocabulary=VOCABULARY),
    }
    encoder = replace(ClipVision.Config.sizes()["l-14"], feature_layer=-1)
    system = MultimodalLM.Config(
        language_model=models[size],
        streams={"image": Stream.Config(encoder=encoder, projector=Perceiver.Config.sizes()["openflamingo"])},
        fusions=(fusion(EVERY[size], encoder.output_width),),
        # MPT says with the table that it reads with; RedPajama's new rows of the head stay as they are
        added_tokens=AddedTokens.Config(tied=isinstance(models[size], Mpt.Config)),
    )
    train = Stage(
        name="train",
        title="teach the Perceiver and the gated blocks to show a frozen language model pictures",
        system=system,
        train=TRAINED,
        processor=Processor.Config(template="flamingo", transforms={"image": ImageTransform(size=224)}),
        data=DATA,
        objective=NextToken.Config(),
        batch_size=64 * (64 + 32),
        micro_batch_size=96,
        epochs=1,
        max_tokens=256,
        packing=True,
        optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.1, weight_decay_except=("streams.*", "added_tokens.*")),
        schedule=Schedule(decay="constant", warmup=1875),
    )
    return Recipe(
        name="openflamingo",
        size=size,
        paper="2308.01390",
        about="CLIP through a Perceiver into gated cross-attention of a frozen MPT or RedPajama",
        stages=(train,),
    )


def fusion(every: int, width: int) -> CrossAttention.Config:
    """OpenFlamingo's blocks, in front of every `every`-th layer counted from the end of the first ones."""
    return CrossAttention.Config(block=BLOCK, every=every, first=every - 1, memory_width=width)


def tiny() -> Recipe:
    """OpenFlamingo at CPU size."""
    encoder = replace(ClipVision.Config.tiny(), image_size=64, patch_size=16)
    perceiver = replace(Perceiver.Config.tiny(), num_frames=None, num_media=None)
    system = MultimodalLM.Config(
        language_model=replace(Mpt.Config.tiny(), vocabulary=TINY_VOCABULARY - 2, context=512),
        streams={"image": Stream.Config(encoder=encoder, projector=perceiver)},
        fusions=(replace(fusion(2, encoder.output_width), block=replace(BLOCK, num_heads=2, head_width=8)),),
        added_tokens=AddedTokens.Config(tied=True),
    )
    data = {"train": on_desk(DATA, laion=desk_dialogues(), mmc4=DeskDocuments.Config(interleaving=DOCUMENTS))}
    return with_fast_gates(shrunk(openflamingo(), dict.fromkeys(data, system), data, steps=100, image_size=64))
