"""LLaVA-1.5 that also hears: an audio stream beside its pictures, through Whisper, HuBERT or either CLAP.

Weft's own composition; no paper trained this very model. Pictures, stages and rates are LLaVA-1.5's (arXiv:2310.03744). Sound
goes through a published tower, frozen as LLaVA's: Whisper (arXiv:2212.04356) or HuBERT (arXiv:2106.07447), of whose frames five
make a token as in SLAM-ASR (arXiv:2402.08846), CNN14 of Microsoft's CLAP (arXiv:2206.04769) with a token a step, or HTSAT of
LAION's (arXiv:2211.06687) with a token a cell of frequency and time. A record names its files under "image" and "audio".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from weft.core.errors import unknown_name
from weft.core.interfaces import InputProjector, ModalityEncoder
from weft.data.audio import AudioTransform, WaveformTransform
from weft.data.clap_audio import ClapAudioTransform
from weft.data.dataset import Dataset
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.desk.listening import DeskListening
from weft.data.desk.speech import CLIP_SECONDS, SAMPLE_RATE_HZ
from weft.data.media_transform import MediaTransform
from weft.encoders.clap_laion import ClapLaionWrapper
from weft.encoders.clip import ClipVision
from weft.encoders.cnn14 import Cnn14
from weft.encoders.hubert import Hubert
from weft.encoders.whisper import Whisper
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.mlp import MLP
from weft.projectors.stacked_frames import StackedFrames
from weft.recipes import llava_1_5
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Recipe, Stage

SIZES = ("whisper", "hubert", "clap", "clap-laion")
STREAM = "audio"
PROJECTORS = "streams.*.projector.*"
CLIP_SECONDS_PUBLISHED = 30.0  # Whisper's; HuBERT hears as much


@dataclass(frozen=True)
class Ear:
    """What a size hears with."""

    encoder: ModalityEncoder.Config
    projector: InputProjector.Config
    transform: MediaTransform

    @property
    def stream(self) -> Stream.Config:
        return Stream.Config(encoder=self.encoder, projector=self.projector)


def llava_audio(size: str = "whisper") -> Recipe:
    """The composition with the audio tower of that name; the language model is Vicuna-7B v1.5."""
    ear = _ear(size)
    align, instruct = (_hearing(stage, ear) for stage in llava_1_5.llava_1_5("7b").stages)
    align = replace(
        align,
        title="teach both projectors to speak the language model's space, on captions of pictures and of recordings",
        train=(PROJECTORS,),
        data=LlavaJson.Config(path="llava-audio/captions.json", images="llava-audio/files"),
    )
    instruct = replace(
        instruct,
        title="teach projectors and language model to follow instructions about what is seen and heard",
        train=(PROJECTORS, llava_1_5.LANGUAGE_MODEL),
        data=LlavaJson.Config(path="llava-audio/instructions.json", images="llava-audio/files"),
    )
    return Recipe(
        name="llava-audio",
        paper="2310.03744",
        size=size,
        about="LLaVA-1.5 with an audio stream through Whisper, HuBERT or CLAP, composed here",
        stages=(align, instruct),
    )


def tiny(size: str = "whisper") -> Recipe:
    """The composition at CPU size: first what is said is written down and what is seen is told, then both are asked about."""
    ear = _tiny_ear(size)
    image = Stream.Config(
        encoder=replace(ClipVision.Config.tiny(), image_size=64, patch_size=16), projector=MLP.Config(depth=2)
    )
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512),
        streams={"image": image, STREAM: ear.stream},
        fusions=(TokenConcatenation.Config(streams=("image", STREAM)),),
    )
    written = DeskListening.Config(num_turns=1, mix={"transcript": 1.0}, epoch=1000)
    beside = DeskListening.Config(kind="speech_and_picture", num_turns=2, epoch=1000)
    data = {
        "align": _mixture(speech=written, pictures=desk_captions()),
        "instruct": _mixture(speech=DeskListening.Config(epoch=1000), both=beside),
    }
    small = shrunk(llava_audio(size), dict.fromkeys(data, system), data, steps=20, image_size=64)

    def with_ear(stage: Stage) -> Stage:
        transforms = {**stage.processor.transforms, STREAM: ear.transform}
        return replace(stage, processor=replace(stage.processor, transforms=transforms))

    return replace(small, stages=tuple(with_ear(stage) for stage in small.stages))


def _mixture(**parts: Dataset.Config) -> Mixture.Config:
    return Mixture.Config(parts={name: Mixture.Part(data=data) for name, data in parts.items()})


def _ear(size: str) -> Ear:
    """The published tower of a size with what leads to it and from it."""
    seconds = CLIP_SECONDS_PUBLISHED
    if size == "whisper":
        return Ear(Whisper.Config.sizes()["large-v2"], StackedFrames.Config(), AudioTransform(clip_seconds=seconds))
    if size == "hubert":
        hubert = replace(Hubert.Config.sizes()["large"], clip_samples=round(seconds * 16_000))
        return Ear(hubert, StackedFrames.Config(), WaveformTransform(clip_seconds=seconds, standardise=True))
    if size == "clap":
        return Ear(Cnn14.Config.sizes()["clap-microsoft"], MLP.Config(depth=2), ClapAudioTransform.sizes()["clap-microsoft"])
    if size == "clap-laion":
        tower = ClapLaionWrapper.Config.sizes()["htsat-unfused"]
        return Ear(tower, MLP.Config(depth=2), ClapAudioTransform.sizes()["clap-laion"])
    raise unknown_name("size of llava-audio", size, SIZES)


def _tiny_ear(size: str) -> Ear:
    """The same at CPU size, for clips as long as the desk's."""
    stacked = StackedFrames.Config(width=64)
    frames = round(50 * CLIP_SECONDS)
    if size == "whisper":
        whisper = replace(Whisper.Config.tiny(), num_mels=40, num_frames=frames, width=64, feed_forward_width=128)
        return Ear(whisper, stacked, AudioTransform(num_mels=40, clip_seconds=CLIP_SECONDS))
    if size == "hubert":
        hubert = replace(Hubert.Config.tiny(), clip_samples=round(CLIP_SECONDS * 16_000), convolution_width=32, width=64)
        return Ear(hubert, stacked, WaveformTransform(clip_seconds=CLIP_SECONDS))
    heard = ClapAudioTransform(
        num_mels=32, clip_seconds=CLIP_SECONDS, sample_rate_hz=SAMPLE_RATE_HZ, hop_samples=160, highest_hz=8000, fill="cut"
    )
    if size == "clap":
        return Ear(replace(Cnn14.Config.tiny(), num_mels=32, num_frames=heard.unit_shape[1]), MLP.Config(depth=2), heard)
    if size == "clap-laion":
        tower = replace(ClapLaionWrapper.Config.tiny(), num_mels=32, num_frames=heard.unit_shape[1], spec_size=64)
        return Ear(tower, MLP.Config(depth=2), heard)
    raise unknown_name("size of llava-audio", size, SIZES)


def _hearing(stage: Stage, ear: Ear) -> Stage:
    """A stage of LLaVA-1.5 with the audio stream beside its own."""
    assert isinstance(stage.system, MultimodalLM.Config)
    system = replace(
        stage.system,
        streams={**stage.system.streams, STREAM: ear.stream},
        fusions=(TokenConcatenation.Config(streams=("image", STREAM)),),
    )
    processor = replace(stage.processor, transforms={**stage.processor.transforms, STREAM: ear.transform})
    return replace(stage, system=system, processor=processor)
