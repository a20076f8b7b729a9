"""BLIP-2's first stage in the layouts of LAVIS, the published code, and of the `transformers` library, encoder left out.

`transformers` holds what retrieval needs, without the head over words and the temperature.
Source: LAVIS' `blip2_qformer`; `Blip2ForImageTextRetrieval`.
"""

from __future__ import annotations

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.qformer import BLIP_2, LAVIS, Layout
from weft.systems.fusion_encoder import FusionEncoder

_PREDICTIONS = "Qformer.cls.predictions"
_WORDS = KeyMap(
    rename={
        f"{_PREDICTIONS}.transform.dense": "word_head.transform",
        f"{_PREDICTIONS}.transform.LayerNorm": "word_head.norm",
        f"{_PREDICTIONS}.bias": "word_head.bias",
        "temp": "temperature",
    },
    drop={
        f"{_PREDICTIONS}.decoder.weight": "the token table once more",
        f"{_PREDICTIONS}.decoder.bias": "the same numbers under the name that the head had first",
    },
)


def lavis_map(config: FusionEncoder.Config) -> KeyMap:
    """All but the encoder of a LAVIS file of the first stage."""
    heads = {"vision_proj": "media_projection", "text_proj": "text_projection", "itm_head": "matching_head"}
    return KeyMap.join(_transformer(LAVIS, config), KeyMap(rename=heads), _WORDS)


def transformers_map(config: FusionEncoder.Config) -> KeyMap:
    """All but the encoder of a `Blip2ForImageTextRetrieval`, which has no `word_head` and no `temperature`."""
    heads = {"vision_projection": "media_projection", "text_projection": "text_projection", "itm_head": "matching_head"}
    return KeyMap.join(_transformer(BLIP_2, config), KeyMap(rename=heads))


def _transformer(layout: Layout, config: FusionEncoder.Config) -> KeyMap:
    stream = config.streams[config.stream]
    return layout.transformer(stream.projector).under(target=f"streams.{config.stream}.projector.transformer.")  # type: ignore[arg-type]
