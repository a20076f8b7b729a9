"""CLAP: an audio tower and a text tower from recordings with captions by softmax contrast; two systems share the name.

Source: LAION's CLAP, arXiv:2211.06687, HTSAT with RoBERTa; Microsoft's of 2022, arXiv:2206.04769, CNN14 with BERT. Both start
from towers that know sounds (`--from media=...`) and texts, and hear a stretch of a long recording at random,
where Weft takes its beginning. LAION's is the form without fusion; its code also blanks stripes of time and of frequency in
training, which Weft does not. LAION's figures are those of its released scripts; what is marked unverified of Microsoft's was
not released with the model.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.core.interfaces import ModalityEncoder
from weft.data.clap_audio import ClapAudioTransform
from weft.data.datasets.captioned_recordings import CaptionedRecordings
from weft.data.desk.sounds import SAMPLE_RATE_HZ, DeskSounds
from weft.data.processor import Processor
from weft.encoders.bert_text import BertText
from weft.encoders.clap_laion import ClapLaionWrapper
from weft.encoders.cnn14 import Cnn14
from weft.objectives.contrastive import SoftmaxContrastive
from weft.recipes.shrinking import TINY_VOCABULARY, shrunk
from weft.systems.dual_encoder import DualEncoder
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("microsoft", "laion")
STREAM = "audio"


def clap(size: str = "microsoft") -> Recipe:
    """CLAP as Microsoft or LAION published it; by default the one whose towers need no other library."""
    if size not in SIZES:
        raise unknown_name("size of clap", size, SIZES)
    return Recipe(
        name="clap",
        size=size,
        paper="2211.06687" if size == "laion" else "2206.04769",
        about="an audio tower and a text tower by softmax contrast of recordings and captions",
        stages=(_laion() if size == "laion" else _microsoft(),),
    )


def tiny(size: str = "microsoft") -> Recipe:
    """CLAP at CPU size on the desk's sounds."""
    text = replace(BertText.Config.tiny(), vocabulary=TINY_VOCABULARY, context=64)
    published = clap(size)
    system = published.system
    assert isinstance(system, DualEncoder.Config)
    media: ModalityEncoder.Config
    if size == "laion":
        heard = ClapAudioTransform(
            num_mels=16, clip_seconds=0.6, sample_rate_hz=SAMPLE_RATE_HZ, hop_samples=160, highest_hz=8000
        )
        media = replace(ClapLaionWrapper.Config.tiny(), num_frames=heard.unit_shape[1])
        text = replace(text, first_position=2, num_text_types=1, embedding_width=media.pooled_width)
    else:
        heard = ClapAudioTransform(
            num_mels=16, clip_seconds=0.6, sample_rate_hz=SAMPLE_RATE_HZ, hop_samples=320, highest_hz=8000, fill="cut"
        )
        media = replace(Cnn14.Config.tiny(), num_mels=16, num_frames=heard.unit_shape[1])
        text = replace(text, pooler=False, embedding_width=media.pooled_width, head="residual")
    small = shrunk(
        published,
        {"contrastive": replace(system, media=media, text=text)},
        {"contrastive": DeskSounds.Config(seconds=0.6, epoch=1000)},
        steps=60,
        image_size=64,
    )
    (stage,) = small.stages
    stage = replace(
        stage,
        processor=replace(stage.processor, transforms={STREAM: heard}),
        batch_size=16,  # sounds differ in few ways: enough of them that chance is no match
        optimizer=replace(stage.optimizer, learning_rate=5e-3),
    )
    return replace(small, stages=(stage,))


def _laion() -> Stage:
    return Stage(
        name="contrastive",
        title="match recordings and captions",
        system=DualEncoder.Config(
            media=ClapLaionWrapper.Config.sizes()["htsat-unfused"],
            text=BertText.Config.sizes()["clap-laion"],
            scale_per_direction=True,
            stream=STREAM,
        ),
        train=("*",),
        processor=Processor.Config(template="clip_text", transforms={STREAM: ClapAudioTransform.sizes()["clap-laion"]}),
        data=CaptionedRecordings.Config(folder="laion-audio-630k", stream=STREAM),
        objective=SoftmaxContrastive.Config(),
        batch_size=2304,
        epochs=45,
        max_tokens=77,
        # the paper's moments, which are not the usual ones
        optimizer=Optimizer(learning_rate=1e-4, betas=(0.99, 0.9), weight_decay=0.0, clip_norm=None),
        schedule=Schedule(decay="cosine", warmup=3200),
        precision="fp32",
    )


def _microsoft() -> Stage:
    return Stage(
        name="contrastive",
        title="match recordings and captions",
        system=DualEncoder.Config(
            media=Cnn14.Config.sizes()["clap-microsoft"],
            text=BertText.Config.sizes()["clap-microsoft"],
            initial_scale=1 / 0.007,  # unverified
            stream=STREAM,
        ),
        train=("*",),
        processor=Processor.Config(template="clip_text", transforms={STREAM: ClapAudioTransform.sizes()["clap-microsoft"]}),
        data=CaptionedRecordings.Config(folder="audio-text-pairs", stream=STREAM),
        objective=SoftmaxContrastive.Config(max_scale=1 / 0.007),  # unverified: that it starts where it is bounded
        batch_size=128,  # unverified, as are the rate, the epochs and the length of texts
        epochs=40,
        max_tokens=100,
        optimizer=Optimizer(learning_rate=1e-3, clip_norm=None),
        schedule=Schedule(decay="constant", warmup=0),  # stands for a rate that falls tenfold where the loss no longer does
        precision="fp32",
    )
