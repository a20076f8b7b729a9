"""What a text tower asks of its rows."""

from __future__ import annotations

from weft.core.batch import TextSide
from weft.core.errors import ContextTooShort, DataError


def check_single_texts(text: TextSide, context: int, tower: str) -> None:
    """Each row holds one text (segment 1) that fits the context.

    Raises: DataError for packed rows; ContextTooShort for a row of more than `context` tokens.
    """
    if text.tokens.shape[1] > context:
        raise ContextTooShort(
            f"{tower} reads at most {context} tokens, got rows of {text.tokens.shape[1]}; lower max_tokens to {context}"
        )
    if text.segment.numel() and (most := int(text.segment.amax())) > 1:
        raise DataError(f"{tower} reads one text per row, got a row with {most} segments; turn packing off for this stage")
