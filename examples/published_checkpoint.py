"""A folder in the layout of LLaVA-1.5: written by `transformers`, opened and asked by Weft, and written back.

The weights are random and tiny, so that nothing is downloaded; with llava-hf/llava-1.5-7b-hf the calls are the same.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import transformers

import weft
from weft.data.desk import Desk
from weft.data.tokenizers import Tokenizer
from weft.inference.chat import ChatSession
from weft.recipes.converting import convert

LINES = ["USER: how many digits are there? ASSISTANT: There are 3 digits, red, green and blue."]
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
TEXT = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}


def write_with_transformers(folder: Path) -> None:
    """Model, tokenizer and processor as a published repository holds them."""
    torch.manual_seed(0)
    Tokenizer.train(LINES * 4, 400, ("<unk>", "<s>", "</s>", "<pad>", "<image>")).save(folder)
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_special_tokens": {"image_token": "<image>"},
    }
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (("bos_token_id", "<s>"), ("eos_token_id", "</s>"))}
    config = transformers.LlavaConfig(
        vision_config={**VISION, "image_size": 28, "patch_size": 7, "model_type": "clip_vision_model"},
        text_config={**TEXT, **ids, "max_position_embeddings": 512, "model_type": "llama"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    settings = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    transformers.LlavaProcessor(images, tokenizer, **settings).save_pretrained(folder)


def main(max_new_tokens: int, folder: Path) -> None:
    published, back = folder / "published", folder / "back"
    published.mkdir()
    write_with_transformers(published)

    # A folder, a run or a name on the hub: all are opened alike, and every key of the file must find its place.
    session = ChatSession(weft.load_model(published), weft.Sampling(max_new_tokens=max_new_tokens))
    reply = session.ask(weft.Media(Desk("test").picture(0)), "how many digits are there?")
    print(f"Weft: {reply.num_prompt_tokens} prompt tokens, then {reply.text!r} (random weights)")

    convert(published, back, to="transformers")  # what `weft convert published back --to transformers` does
    loaded, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        back, output_loading_info=True, local_files_only=True
    )
    original = transformers.LlavaForConditionalGeneration.from_pretrained(published, local_files_only=True).state_dict()
    equal = sum(torch.equal(tensor, original[name]) for name, tensor in loaded.state_dict().items())
    print(f"transformers: {equal} of {len(original)} tensors came back bit for bit; {sum(map(len, info.values()))} complaints")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-new-tokens", type=int, default=16)
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args().max_new_tokens, Path(folder))
