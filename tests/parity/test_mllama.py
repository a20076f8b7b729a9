"""Llama 3.2 Vision against `transformers`, from random weights through the real key map; the counts of the published sizes."""

from dataclasses import replace

import pytest
import torch
from metas_rules import under_metas_rules
from reference_models import assert_close, randomise, to_transformers, to_weft

from weft.checkpoints import mllama
from weft.core.batch import MediaBatch, MultimodalBatch, TextSide
from weft.core.layout import MediaLayout, tile_grids
from weft.data.visibility import visible_media
from weft.inference.generate import Decoding
from weft.recipes.catalogue import recipe
from weft.systems.accounting import num_parameters, without_values

transformers = pytest.importorskip("transformers")

SIDE, LENGTH = 28, 17  # 16 patches and a class token; filled up to 24
IMAGE = 40  # the first of eight added rows
GRIDS = tile_grids(4)
TAGS_ALONE, TAGS_APART, TAGS_TOGETHER, TAGS_BEHIND_TEXT = (0,), (0, 5), (0, 1), (3, 7)


def reference(gate):
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_global_layers": 2, "attention_heads": 2,
        "image_size": SIDE, "patch_size": 7, "vision_output_dim": 96, "intermediate_layers_indices": [0, 2],
    }  # fmt: skip
    text = {
        "vocab_size": IMAGE, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "cross_attention_layers": [1, 4], "max_position_embeddings": 256, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }  # fmt: skip
    config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    config._attn_implementation = "eager"
    model = randomise(transformers.MllamaForConditionalGeneration(config))
    for name, parameter in model.named_parameters():
        if "cross_attn" in name and name.endswith("gate"):
            parameter.data.fill_(gate)
        elif name.endswith("embedding.gate"):
            parameter.data.fill_(0.5)
    return model


def as_transformers_5(ours):
    """Our model with the rules of the library."""
    model = mllama.as_transformers(ours.config).build().eval()
    model.load_state_dict(ours.state_dict())
    return model


def pixels(tiles, seed=3):
    return torch.randn(tiles, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def prompt(places, grids, seed=3, tokens=12):
    """One row with pictures of these grids at these places."""
    ids = torch.randint(3, IMAGE, (1, tokens), generator=torch.Generator().manual_seed(2))
    ids[0, list(places)] = IMAGE
    place = torch.arange(tokens)[None]
    visible = {"image": torch.from_numpy(visible_media("run", places, tokens))[None]}
    side = TextSide(ids, place, torch.ones_like(ids), place, (ids == IMAGE).long(), visible=visible)
    layout = tuple(MediaLayout(1, LENGTH, tile_rows=rows, tile_columns=columns) for rows, columns in grids)
    item = torch.arange(len(grids)).repeat_interleave(torch.tensor([each.num_tiles for each in layout]))
    spans = torch.tensor([[i, 0, 0, at, 1] for i, at in enumerate(places)])
    media = MediaBatch(pixels(len(item), seed), item, layout, spans, torch.zeros(len(grids), dtype=torch.long))
    return MultimodalBatch(side, {"image": media})


def inputs_of(batch):
    """What the library's processor makes of the same prompt."""
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    media, ids = batch.media["image"], batch.main.tokens
    counts = [layout.num_tiles for layout in media.layout]
    values = torch.zeros(1, len(counts), 4, 3, SIDE, SIDE)
    mask = torch.zeros(1, len(counts), 4, dtype=torch.long)
    for number, tiles in enumerate(media.units.split(counts)):
        values[0, number, : len(tiles)], mask[0, number, : len(tiles)] = tiles, 1
    numbers = [GRIDS.index((layout.tile_rows, layout.tile_columns)) + 1 for layout in media.layout]
    seen = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(ids[0].tolist(), IMAGE)], [counts], 4, ids.shape[1]
    )
    return {
        "input_ids": ids, "pixel_values": values, "aspect_ratio_mask": mask, "aspect_ratio_ids": torch.tensor([numbers]),
        "cross_attention_mask": torch.from_numpy(seen), "attention_mask": torch.ones_like(ids),
    }  # fmt: skip


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["shut gates", "open gates"])
def pair(request, tmp_path_factory):
    theirs = reference(request.param)
    return request.param, theirs, to_weft(theirs, tmp_path_factory.mktemp("mllama"))


@torch.no_grad()
@pytest.mark.parametrize("kept", ["inputs", "outputs"])
def test_the_tower_over_every_grid_is_that_of_the_reference(kept, pair, tmp_path):
    _, theirs, ours = pair
    batch = prompt(tuple(range(8)), GRIDS)
    media, inputs = batch.media["image"], inputs_of(batch)
    if kept == "inputs":
        theirs = under_metas_rules(reference(0.0))
    else:
        ours = as_transformers_5(ours)
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    expected = theirs.model.vision_model(**{name: inputs[name] for name in names}).last_hidden_state[0]
    found = ours.stream("image").encoder(media.units, media.unit_item, media.layout)
    if kept == "outputs":
        assert_close(found.values, expected.flatten(0, 1))
        real = [[tile < layout.num_tiles for tile in range(4)] for layout in media.layout]
        assert torch.equal(found.valid, torch.tensor(real).flatten()[:, None].expand(-1, LENGTH))
        return
    assert_close(found.values, torch.cat([tiles[: each.num_tiles] for tiles, each in zip(expected, media.layout, strict=True)]))


CASES = [
    (TAGS_ALONE, ((1, 1),)), (TAGS_ALONE, ((1, 2),)), (TAGS_ALONE, ((3, 1),)), (TAGS_ALONE, ((2, 2),)),
    (TAGS_APART, ((2, 1), (1, 4))), (TAGS_TOGETHER, ((1, 3), (1, 1))),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(
    ("places", "grids"), [*CASES, (TAGS_BEHIND_TEXT, ((2, 2), (4, 1))), (TAGS_BEHIND_TEXT, ((1, 1), (1, 3)))]
)
def test_logits_equal_the_library_as_it_is(places, grids, pair):
    gate, theirs, ours = pair
    ours, batch = as_transformers_5(ours), prompt(places, grids)
    assert_same(gate, theirs, ours, batch, prompt(places, grids, seed=4))


@torch.no_grad()
@pytest.mark.parametrize(("places", "grids"), [*CASES, (TAGS_BEHIND_TEXT, ((1, 1), (1, 2)))])
def test_logits_equal_metas_rules(places, grids, pair):
    gate, _, ours = pair
    assert_same(gate, under_metas_rules(reference(gate)), ours, prompt(places, grids), prompt(places, grids, seed=4))


def assert_same(gate, theirs, ours, batch, other):
    inputs = inputs_of(batch)
    found = ours(batch).logits()
    assert_close(found, theirs(**inputs, use_cache=False).logits)
    changed = (ours(other).logits() - found).abs().max()
    assert changed > 1e-3 if gate else changed == 0, "pictures matter through open gates only"
    said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)[0, inputs["input_ids"].shape[1] :]
    assert greedy(ours, batch, 6) == said.tolist()


def greedy(ours, batch, steps):
    decoding = Decoding(ours)
    logits, said = decoding.prefill(batch), []
    for _ in range(steps):
        said.append(int(logits[0].argmax()))
        logits = decoding.step(torch.tensor([said[-1]]))
    return said


@torch.no_grad()
def test_what_fills_up_is_seen_by_what_is_real(pair):
    """The published tower shows real tiles the blank ones; without them features would be others."""
    _, _, ours = pair
    encoder, media = ours.stream("image").encoder, prompt(TAGS_ALONE, ((1, 2),)).media["image"]
    alone = replace(encoder.config, max_tiles=2).build()
    state = {name: value for name, value in encoder.state_dict().items() if "tile" not in name}
    alone.load_state_dict(state, strict=False)
    for table in (alone.tile_positions, alone.tiles_before_local, alone.tiles_before_global):
        table.gate.data.zero_()
    shut = encoder.config.build()
    shut.load_state_dict(state, strict=False)
    filled = shut.eval()(media.units, media.unit_item, media.layout).values
    assert (filled - alone.eval()(media.units, media.unit_item, media.layout).values).abs().max() > 1e-3


@torch.no_grad()
def test_a_text_without_pictures_is_answered_as_by_the_bare_language_model(pair):
    _, theirs, ours = pair
    tokens = torch.randint(3, IMAGE, (2, 9), generator=torch.Generator().manual_seed(5))
    place = torch.arange(9).expand(2, 9)
    none = {"image": torch.tensor([0, -1]).expand(2, 9, 2)}
    bare = replace(ours.config, streams={}, fusions=(), added_tokens=None).build().eval()
    names = bare.state_dict()
    bare.load_state_dict({name: value for name, value in ours.state_dict().items() if name in names})
    plain = TextSide(tokens, place, torch.ones_like(tokens), place, torch.zeros_like(tokens))
    expected = bare(MultimodalBatch(plain)).logits()
    for side in (plain, replace(plain, visible=none)):
        assert torch.equal(ours(MultimodalBatch(side)).logits(), expected)
    assert_close(expected, theirs(input_ids=tokens, use_cache=False).logits)


def test_the_way_to_transformers_and_back_changes_no_bit(pair, tmp_path):
    _, theirs, ours = pair
    again = to_transformers(ours, type(theirs), tmp_path / "ours")
    expected = theirs.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_both_spellings_are_read(pair, tmp_path):
    _, theirs, ours = pair
    hub = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    hub |= {f"{part}.": f"model.{part}." for part in ("vision_model", "multi_modal_projector")}
    for spelling in (hub, {new: old for old, new in hub.items()}):

        def respelled(key, spelling=spelling):
            return next((new + key.removeprefix(old) for old, new in spelling.items() if key.startswith(old)), key)

        again = to_weft(theirs, tmp_path / str(len(list(tmp_path.iterdir()))), respelled)
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("size", "stage", "total"),
    [("11b", "anneal", 10_642_941_475), ("11b", "instruct", 10_670_220_835), ("90b", "instruct", 88_593_355_323)],
)
def test_published_sizes_have_the_published_number_of_parameters(size, stage, total):
    with without_values():
        system = recipe("llama-3.2-vision", size).stage(stage).system.build()
    assert num_parameters(system) == total
    encoder = {"anneal": 836_288_019, "instruct": 863_567_379}[stage]
    assert num_parameters(system.stream("image").encoder) == encoder
    assert system.config.streams["image"].encoder.output_width == 7680
    if size == "11b":
        assert num_parameters(system.language_model.output) == 525_336_576
        assert num_parameters(system.stream("image").projector) == 31_461_376
        text = num_parameters(system.language_model) + num_parameters(system.added_tokens)
        assert text - 525_336_576 == 9_249_855_504
    else:
        assert abs(total - 88.8e9) < 0.005 * 88.8e9  # the model card's figure
    slots = [i for i, block in enumerate(system.language_model.blocks) if num_parameters(block.before_attention)]
    layers = [i + place for place, i in enumerate(slots)]
    assert layers == (list(range(3, 40, 5)) if size == "11b" else list(range(3, 100, 5)))
