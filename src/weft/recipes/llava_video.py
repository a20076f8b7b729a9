"""LLaVA-1.5 that watches: eight frames of a film through LanguageBind's video tower, which attends over time.

Weft's own composition; no paper trained this very model. Stages and rates are LLaVA-1.5's (arXiv:2310.03744). As in Video-LLaVA
(arXiv:2311.10122) a film is eight frames of 224 pixels, evenly chosen, and the tower is LanguageBind's (arXiv:2310.01852),
frozen and read before its last layer. Other than there, pictures come through the same tower, as films of one frame, where
Video-LLaVA has a second one for them and one projector for both; and four neighbours of a frame's grid are one token as in VILA
(arXiv:2312.07533), so a film has 512, where Video-LLaVA has 2,056, class tokens included.
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
TOWER = Video.Config.sizes()["languagebind-l-14"]
PROJECTOR = f"streams.{STREAM}.projector.*"
PROJECTED = MLPDownsample.Config(order="rows")


def llava_video(size: str = "7b") -> Recipe:
    """The composition on Vicuna v1.5 of a size."""
    if size not in SIZES:
        raise unknown_name("size of llava-video", size, SIZES)
    align, instruct = (_watching(stage) for stage in llava_1_5.llava_1_5(size).stages)
    align = replace(
        align,
        train=(PROJECTOR,),
        data=LlavaJson.Config(path="llava-video/captions.json", images="llava-video/files"),
    )
    instruct = replace(
        instruct,
        title="teach projector and language model to follow instructions about films",
        train=(PROJECTOR, llava_1_5.LANGUAGE_MODEL),
        data=LlavaJson.Config(path="llava-video/instructions.json", images="llava-video/files"),
    )
    return Recipe(
        name="llava-video",
        paper="2310.03744",
        size=size,
        about="LLaVA-1.5 on films of eight frames, through LanguageBind's attention over time, composed here",
        stages=(align, instruct),
    )


def tiny() -> Recipe:
    """The composition at CPU size on films of the desk."""
    image = replace(ClipVision.Config.tiny(), image_size=64, patch_size=16)
    tower = replace(TOWER, image=image, num_frames=NUM_STEPS)
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512),
        streams={STREAM: Stream.Config(encoder=tower, projector=PROJECTED)},
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
    stream = Stream.Config(encoder=TOWER, projector=PROJECTED)
    system = replace(stage.system, streams={STREAM: stream}, fusions=(TokenConcatenation.Config(streams=(STREAM,)),))
    pictures = stage.processor.transforms["image"]
    assert isinstance(pictures, ImageTransform)
    film = VideoTransform(frame=replace(pictures, size=224), num_frames=NUM_FRAMES)
    return replace(stage, system=system, processor=replace(stage.processor, transforms={STREAM: film}))
