"""Compose a model that nobody published: SigLIP's tower, a pixel shuffle, and a decoder of Qwen's kind; run it both ways."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

import weft
from weft.data.collate import collate
from weft.data.desk import Desk
from weft.data.images import HALF, ImageTransform
from weft.data.processor import Processor
from weft.encoders.siglip import SiglipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.objectives.next_token import NextToken
from weft.projectors.pixel_shuffle import PixelShuffle
from weft.recipes.shrinking import tiny_tokenizer
from weft.systems.multimodal_lm import MultimodalLM, Stream


def compose(vocabulary: int) -> MultimodalLM.Config:
    """Every part is a config of its own; the sizes that follow from other parts are filled in when it is built."""
    tower = replace(SiglipVision.Config.tiny(), image_size=64, patch_size=8)  # 8 x 8 patches
    language_model = replace(  # Qwen2.5: grouped keys, biases on queries, keys and values, one table for both ends
        Decoder.Config.tiny(), vocabulary=vocabulary, context=512, attention_bias=True, tied_head=True
    )
    image = Stream.Config(encoder=tower, projector=PixelShuffle.Config(ratio=2))
    return MultimodalLM.Config(language_model=language_model, streams={"image": image}, fusions=(TokenConcatenation.Config(),))


def main(max_new_tokens: int) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer().with_special(["<|im_start|>", "<|im_end|>"])  # what the chat template is written with
    config = compose(tokenizer.vocabulary)
    system = config.build().eval()
    print(f"{sum(p.numel() for p in system.parameters()):,} parameters, {config.num_positions('image')} positions per picture")

    # The processor reads from the same config how many positions a picture takes.
    images = ImageTransform(size=64, resize="direct", mean=HALF, std=HALF)
    processor = Processor.Config(template="chatml", transforms={"image": images}).build(tokenizer, config)
    picture = weft.Media(Desk("test").picture(0))

    # Forward: a conversation with its answer, and the loss of the answer's tokens.
    question = weft.user(picture, "How many digits are there?")
    batch = collate([processor.encode(weft.Conversation((question, weft.assistant("3"))))])
    with torch.inference_mode():
        hidden = system(batch).hidden
        loss = NextToken.Config().build()(system, batch).mean()
    print(f"hidden {tuple(hidden.shape)}, loss {loss:.2f}: nothing is learned yet")

    # Generate: the same question without the answer.
    settings = weft.Sampling(max_new_tokens=max_new_tokens, temperature=1.0, seed=0)
    reply = weft.Model(system, processor).generate([weft.Conversation((question,))], settings)[0]
    print(f"{reply.num_prompt_tokens} prompt tokens, {len(reply.token_ids)} new ones: {reply.text!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    main(parser.parse_args().max_new_tokens)
