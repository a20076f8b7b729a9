"""LLaVA-1.5 that watches: frames of a film one by one through CLIP, each with a learned vector that says when it was.

Weft's own composition; no paper trained this very model. Stages and rates are LLaVA-1.5's (arXiv:2310.03744). A film is eight
frames of 224 pixels, evenly chosen as by Video-LLaVA (arXiv:2311.10122), in one stream with pictures, which are films of one
frame; four neighbours of a frame's grid are one token as in VILA (arXiv:2312.07533), so a film has 512. Video-LLaVA's towers
attend over time; here the vectors are Flamingo's (arXiv:2204.14198) and the language model relates the frames. The vectors are
new, so they learn from the first stage on.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.desk.clips import NUM_STEPS
from weft.data.desk.watching import DeskWatching
from weft.data.images import ImageTransform
from weft.data.video import VideoTransform
from weft.encoders.clip import ClipVision
from weft.encoders.video import Video
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.mlp_downsample import MLPDownsample
from weft.recipes import llava_1_5
from weft.recipes.shrinking import TINY_VOCABULARY, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Recipe, Stage

SIZES = ("7b", "13b")
STREAM = "video"
NUM_FRAMES = 8
PROJECTOR = f"streams.{STREAM}.projector.*"
PROJECTED = MLPDownsample.Config(order="rows")
FRAME_EMBEDDING = f"streams.{STREAM}.encoder.frame_embedding.*"


def llava_video(size: str = "7b") -> Recipe:
    """The composition on Vicuna v1.5 of a size."""
    if size not in SIZES:
        raise unknown_name("size of llava-video", size, SIZES)
    align, instruct = (_watching(stage) for stage in llava_1_5.llava_1_5(size).stages)
    align = replace(
        align,
        title="teach projector and moments to speak the language model's space",
        train=(PROJECTOR, FRAME_EMBEDDING),
        data=LlavaJson.Config(path="llava-video/captions.json", images="llava-video/files"),
    )
    instruct = replace(
        instruct,
        title="teach projector, moments and language model to follow instructions about films",
        train=(PROJECTOR, FRAME_EMBEDDING, llava_1_5.LANGUAGE_MODEL),
        data=LlavaJson.Config(path="llava-video/instructions.json", images="llava-video/files"),
    )
    return Recipe(
        name="llava-video",
        paper="2310.03744",
        size=size,
        about="LLaVA-1.5 on the frames of films, with a learned vector for each moment, composed here",
        stages=(align, instruct),
    )


def tiny() -> Recipe:
    """The composition at CPU size on films of the desk."""
    tower = replace(ClipVision.Config.tiny(), image_size=64, patch_size=16)
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512),
        streams={STREAM: Stream.Config(encoder=Video.Config(image=tower, num_frames=NUM_STEPS), projector=PROJECTED)},
        fusions=(TokenConcatenation.Config(streams=(STREAM,)),),
    )
    data = {
        "align": DeskWatching.Config(num_turns=1, mix={"narration": 1.0}, epoch=1000),
        "instruct": DeskWatching.Config(num_turns=3, epoch=1000),
    }
    small = shrunk(llava_video(), dict.fromkeys(data, system), data, steps=20, image_size=64)

    def shorter(stage: Stage) -> Stage:
        film = stage.processor.transforms[STREAM]
        assert isinstance(film, VideoTransform)
        return replace(stage, processor=replace(stage.processor, transforms={STREAM: replace(film, num_frames=NUM_STEPS)}))

    return replace(small, stages=tuple(shorter(stage) for stage in small.stages))


def _watching(stage: Stage) -> Stage:
    """A stage of LLaVA-1.5 with films in the place of pictures."""
    assert isinstance(stage.system, MultimodalLM.Config)
    tower = replace(ClipVision.Config.sizes()["l-14"], feature_layer=-2)
    stream = Stream.Config(encoder=Video.Config(image=tower, num_frames=NUM_FRAMES), projector=PROJECTED)
    system = replace(stage.system, streams={STREAM: stream}, fusions=(TokenConcatenation.Config(streams=(STREAM,)),))
    pictures = stage.processor.transforms["image"]
    assert isinstance(pictures, ImageTransform)
    film = VideoTransform(frame=replace(pictures, size=224), num_frames=NUM_FRAMES)
    return replace(stage, system=system, processor=replace(stage.processor, transforms={STREAM: film}))
