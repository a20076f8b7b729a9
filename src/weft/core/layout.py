"""What token counts depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaLayout:
    """The feature grid of one medium: what `InputProjector.Config.num_tokens` needs and nothing else.

    Units: `height` and `width` count feature positions per unit (patches), `frames` counts units in time.
    """

    height: int
    width: int
    frames: int = 1

    @property
    def positions(self) -> int:
        """Feature positions of the whole medium, class tokens left out."""
        return self.frames * self.height * self.width
