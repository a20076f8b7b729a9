"""An encoder-decoder that sees: media join the text that its encoder reads, its decoder writes the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weft.core.batch import MultimodalBatch
from weft.core.errors import DataError
from weft.core.interfaces import ENCODED, EncoderDecoder, LanguageModel
from weft.core.media import MediaFeatures
from weft.core.memory import Memory
from weft.core.sequence import TokenSequence
from weft.systems.multimodal_lm import MultimodalSystem


class MultimodalSeq2Seq(MultimodalSystem):
    """Encoders and projectors by stream, an encoder-decoder, and the fusions that join media and its encoder.

    The decoder's tokens see what the encoder made of their own segment.

    Shapes: batch of a text [B, S] with media and a decoder text [B, T] -> hidden [B, T, D]; head "text" gives [.., V].
    Source: BLIP-2 on Flan-T5, arXiv:2301.12597; SimVLM, arXiv:2108.10904.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MultimodalSystem.Config):
        language_model: EncoderDecoder.Config

        def build(self) -> MultimodalSeq2Seq:
            return MultimodalSeq2Seq(self)

        @property
        def decoder_start(self) -> int:
            return self.language_model.start_token

    language_model: Any

    @property
    def reading_half(self) -> LanguageModel:
        half: LanguageModel = self.language_model.encoder
        return half

    def sequence(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> TokenSequence:
        """The decoder's text, embedded, beside the hidden states of all that the encoder read.

        Raises: DataError for a batch without a decoder side.
        """
        text = batch.decoder
        if text is None:
            raise DataError("the batch has no decoder side; build the processor from this system's config")
        memory = Memory(
            values=self.read(batch, media),
            item=batch.main.segment - 1,  # -1 is padding
            visible=(text.segment - 1)[..., None].expand(*text.segment.shape, 2),
        )
        return TokenSequence(self.embed(text.tokens), text.positions, text.rule(), text.modality, {ENCODED: memory})

    def read(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> Tensor:
        """The encoder's hidden states, [B, S, D]; nothing is read of a text without a token, whose rest a cache holds."""
        sequence = self.fused(batch, media)
        if not sequence.embeddings.shape[1]:
            return sequence.embeddings
        hidden, _ = self.reading_half(sequence)
        return hidden
