"""A reference for systems that lay media into their text, in plain loops around a Llama of `transformers`.

What is read is a list of texts and media in their order; each text goes to the `tokenizers` library alone, and each row of
embeddings is laid behind the one before.
"""

from pathlib import Path

import tokenizers
import torch

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class SplicedLlama:
    """A Llama that reads texts and media, as in `say("look at ", media, " now")`."""

    def __init__(self, model: torch.nn.Module, tokenizer: Path, begin: str = "<s>") -> None:
        self.model, self.tokenizer = model, tokenizers.Tokenizer.from_file(str(tokenizer))
        self.begin = self.tokenizer.token_to_id(begin)

    def rows(self, *pieces: str | torch.Tensor) -> torch.Tensor:
        """[T, D] of the begin token and the pieces, texts and tokens of media [L, D]."""
        table = self.model.get_input_embeddings().weight
        rows = [table[self.begin]]
        for piece in pieces:
            if isinstance(piece, str):
                rows += [table[token] for token in self.tokenizer.encode(piece, add_special_tokens=False).ids]
            else:
                rows += list(piece)
        return torch.stack(rows)

    def read(self, *pieces: str | torch.Tensor) -> torch.Tensor:
        """The logits of every position, [T, V]."""
        return self.model(inputs_embeds=self.rows(*pieces)[None], use_cache=False).logits[0]

    def say(self, *pieces: str | torch.Tensor, steps: int = 8) -> list[int]:
        """The likeliest next tokens, one after the other, everything read anew each time."""
        rows, said = self.rows(*pieces), []
        for _ in range(steps):
            said.append(int(self.model(inputs_embeds=rows[None], use_cache=False).logits[0, -1].argmax()))
            rows = torch.cat((rows, self.model.get_input_embeddings().weight[said[-1]][None]))
        return said


def pixels(picture, mean_and_std=CLIP) -> torch.Tensor:
    """[1, 3, S, S] of a picture (S, S, 3) uint8 that has its final size, one channel at a time."""
    channels = []
    for channel, (mean, std) in enumerate(zip(*mean_and_std, strict=True)):
        channels.append((torch.tensor(picture[:, :, channel], dtype=torch.float32) / 255 - mean) / std)
    return torch.stack(channels)[None]


def linear(weights: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    """One vector after the other through a named matrix, and its bias where it has one."""
    shift = weights.get(f"{name}.bias", 0.0)
    return torch.stack([weights[f"{name}.weight"] @ vector + shift for vector in x])
