"""A CLIP folder as `transformers` writes it opens as a dual encoder with its tokenizer and preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import assert_close, randomise
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from weft.core.conversation import Conversation, Media, assistant, user
from weft.data.collate import collate
from weft.recipes.loading import load_system

transformers = pytest.importorskip("transformers")

CAPTIONS = ("a red seven on a desk", "two")
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Wraps a text in begin and end tokens, the last two of the vocabulary, as CLIP's does."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(CAPTIONS * 5, trainer)
    backend.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    begin, end = (backend.token_to_id(name) for name in ("<|startoftext|>", "<|endoftext|>"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", begin), ("<|endoftext|>", end)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@torch.no_grad()
def test_embeddings_of_pictures_and_captions_equal_the_reference(tmp_path):
    words = tokenizer()
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    config = transformers.CLIPConfig(
        text_config={**SIZE, "vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": words.eos_token_id},
        vision_config={**SIZE, "image_size": 28, "patch_size": 7},
        projection_dim=20,
    )
    theirs = randomise(transformers.CLIPModel(config))
    theirs.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    images.save_pretrained(tmp_path)

    ours = load_system(tmp_path)
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 255, (40, 30 + 20 * i, 3), dtype=np.uint8)) for i in range(2)]
    conversations = [Conversation((user(Media(p)), assistant(c))) for p, c in zip(pictures, CAPTIONS, strict=True)]
    found = ours.system(collate([ours.processor.encode(c) for c in conversations])).embeddings
    expected = theirs(
        **words(list(CAPTIONS), padding=True, return_tensors="pt", return_token_type_ids=False),
        pixel_values=images(pictures, return_tensors="pt")["pixel_values"],
    )
    assert_close(found["media"], expected.image_embeds)
    assert_close(found["text"], expected.text_embeds)
