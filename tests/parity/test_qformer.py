"""The Q-Former against `transformers`, from random weights of whole systems through the real key maps."""

import pytest
import torch
from reference_models import assert_close, randomise
from safetensors.torch import load_file
from torch.nn.functional import normalize

from weft.checkpoints.qformer import BLIP_2, INSTRUCT_BLIP, LAVIS, projector_alone, read_config, write_config
from weft.checkpoints.weight_files import weights
from weft.core.errors import CheckpointError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.core.query_text_rules import bidirectional, multimodal_causal, unimodal
from weft.projectors.qformer import QFormer

transformers = pytest.importorskip("transformers")

NUM_QUERIES, FEATURE_WIDTH, OUTPUT_WIDTH, VOCABULARY = 5, 24, 40, 60
VISION = {
    "hidden_size": FEATURE_WIDTH, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 24,
    "patch_size": 8,
}  # fmt: skip
READER = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 3, "vocab_size": VOCABULARY,
    "max_position_embeddings": 12, "encoder_hidden_size": FEATURE_WIDTH,
}  # fmt: skip
SPEAKER = {
    "model_type": "opt", "hidden_size": OUTPUT_WIDTH, "word_embed_proj_dim": OUTPUT_WIDTH, "ffn_dim": 40,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30, "max_position_embeddings": 16,
}  # fmt: skip
PIXELS = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(1, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(2))
VALID = torch.arange(6) < torch.tensor([[6], [2], [4]])
TEXT = TOKENS.masked_fill(~VALID, -1)


def reference(kind: str, **reader):
    """A whole random system: `Blip2ForConditionalGeneration` and its kin."""
    family = "InstructBlip" if kind.startswith("InstructBlip") else "Blip2"
    settings = {
        "vision_config": VISION, "qformer_config": {**READER, **reader}, "text_config": SPEAKER,
        "num_query_tokens": NUM_QUERIES, "image_text_hidden_size": 16,
    }  # fmt: skip
    if family == "InstructBlip":
        del settings["image_text_hidden_size"]
    return randomise(getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**settings)))


def read(theirs, folder, layout, spell=lambda key: key) -> QFormer:
    """Our Q-Former from the file that the whole system's library writes; `spell` makes another spelling of the keys."""
    theirs.save_pretrained(folder)
    config = read_config(theirs.config.to_dict())
    ours = config.build(FEATURE_WIDTH, OUTPUT_WIDTH).eval()
    state = {spell(key): value for key, value in load_file(folder / "model.safetensors").items()}
    projector_alone(layout.projector(config)).load(ours, state, str(folder))
    return ours


def features(theirs, instruction: torch.Tensor | None = None) -> MediaFeatures:
    seen = theirs.vision_model(PIXELS).last_hidden_state
    return MediaFeatures(seen, torch.arange(3), (MediaLayout(1, seen.shape[1]),) * 3, instruction=instruction)


@torch.no_grad()
def test_blip_2_gives_the_references_hidden_state_and_tokens(tmp_path):
    theirs = reference("Blip2ForConditionalGeneration")
    ours = read(theirs, tmp_path, BLIP_2)
    assert ours.config.vocabulary is None
    expected, media = theirs.get_image_features(PIXELS, return_dict=True), features(theirs)
    assert_close(ours.transformer(media), expected.qformer_outputs.last_hidden_state)
    assert_close(ours(media).values, expected.pooler_output.flatten(0, 1))


@torch.no_grad()
def test_features_that_do_not_exist_are_not_read(tmp_path):
    theirs = reference("Blip2ForConditionalGeneration")
    ours = read(theirs, tmp_path, BLIP_2)
    media = features(theirs)
    valid = torch.arange(10) < torch.tensor([[10], [4], [7]])
    seen = MediaFeatures(media.values, media.unit_item, media.layout, valid)
    queries = theirs.query_tokens.expand(3, -1, -1)
    expected = theirs.qformer(queries, encoder_hidden_states=media.values, encoder_attention_mask=valid.long())
    assert_close(ours.transformer(seen), expected.last_hidden_state)


@torch.no_grad()
def test_instruct_blip_reads_instructions_of_unequal_lengths(tmp_path):
    theirs = reference("InstructBlipForConditionalGeneration")
    ours = read(theirs, tmp_path, INSTRUCT_BLIP)
    asked = {"qformer_input_ids": TOKENS.masked_fill(~VALID, 0), "qformer_attention_mask": VALID.long()}
    expected, media = theirs.get_image_features(PIXELS, **asked, return_dict=True), features(theirs, TEXT)
    real = torch.cat((torch.ones(3, NUM_QUERIES, dtype=torch.bool), VALID), 1)
    assert_close(ours.transformer(media, TEXT)[real], expected.qformer_outputs.last_hidden_state[real])
    assert_close(ours(media).values, expected.pooler_output.flatten(0, 1))


@torch.no_grad()
def test_without_an_instruction_it_is_blip_2(tmp_path):
    theirs = reference("InstructBlipForConditionalGeneration")
    ours = read(theirs, tmp_path, INSTRUCT_BLIP)
    blip = read_config({**theirs.config.to_dict(), "model_type": "blip-2"}).build(FEATURE_WIDTH, OUTPUT_WIDTH).eval()
    shared = {key: value for key, value in ours.state_dict().items() if key in blip.state_dict()}
    blip.load_state_dict(shared)
    media = features(theirs)
    assert torch.equal(ours(media).values, blip(MediaFeatures(media.values, media.unit_item, media.layout, None, TEXT)).values)


@torch.no_grad()
def test_the_first_stage_gives_the_references_similarities_and_matches(tmp_path):
    theirs = reference("Blip2ForImageTextRetrieval", use_qformer_text_input=True)
    config = read_config(theirs.config.to_dict())
    ours = config.build(FEATURE_WIDTH, OUTPUT_WIDTH).eval().transformer
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    dropped = projector_alone(BLIP_2.transformer(config)).load(ours, state)
    assert {"itm_head.weight", "text_projection.weight", "vision_projection.weight"} <= dropped.keys()
    padded, media = TOKENS.masked_fill(~VALID, 0), features(theirs)

    expected = theirs(PIXELS, padded, VALID.long())
    apart = ours(media, TEXT, unimodal(NUM_QUERIES, VALID))
    queries = normalize(theirs.vision_projection(apart[:, :NUM_QUERIES]), dim=-1)
    texts = normalize(theirs.text_projection(apart[:, NUM_QUERIES]), dim=-1)
    assert_close((queries @ texts.T).amax(1), expected.logits_per_image)
    assert_close(apart[:, NUM_QUERIES:][VALID], ours(None, TEXT)[VALID])  # the text's own pass, without queries

    expected = theirs(PIXELS, padded, VALID.long(), use_image_text_matching_head=True)
    together = ours(media, TEXT, bidirectional(NUM_QUERIES, VALID))
    assert_close(theirs.itm_head(together[:, :NUM_QUERIES]).mean(1), expected.logits_per_image)


@torch.no_grad()
@pytest.mark.parametrize("pattern", [unimodal, bidirectional, multimodal_causal])
def test_each_pattern_gives_the_reference_under_its_mask_written_out(tmp_path, pattern):
    """The reference takes a mask [B, 1, K + T, K + T]; rows of padding, which see nothing here, are not compared."""
    theirs = reference("Blip2ForImageTextRetrieval", use_qformer_text_input=True)
    config = read_config(theirs.config.to_dict())
    ours = config.build(FEATURE_WIDTH, OUTPUT_WIDTH).eval().transformer
    projector_alone(BLIP_2.transformer(config)).load(ours, weights(theirs))
    query, text, media = torch.arange(11)[:, None], torch.arange(11)[None], features(theirs)
    rules = {
        unimodal: (query < NUM_QUERIES) == (text < NUM_QUERIES),
        bidirectional: torch.ones(11, 11, dtype=torch.bool),
        multimodal_causal: (text < NUM_QUERIES) | ((query >= NUM_QUERIES) & (text <= query)),
    }
    real = torch.cat((torch.ones(3, NUM_QUERIES, dtype=torch.bool), VALID), 1)
    mask = rules[pattern] & real[:, None] | torch.eye(11, dtype=torch.bool)
    embedded = theirs.embeddings(TOKENS, query_embeds=theirs.query_tokens.expand(3, -1, -1))
    expected = theirs.qformer(
        embedded, query_length=NUM_QUERIES, attention_mask=mask[:, None], encoder_hidden_states=media.values
    ).last_hidden_state
    assert_close(ours(media, TEXT, pattern(NUM_QUERIES, VALID))[real], expected[real])


def text_over_cached_queries(theirs, media: MediaFeatures, text: torch.Tensor) -> torch.Tensor:
    """How the published code writes a text: the queries' own pass leaves each layer's keys and values, and the text attends to
    those and to itself so far. One row, one head, one token at a time, with the reference's weights."""
    qformer, rows = theirs.qformer, []
    queries = theirs.qformer(
        theirs.query_tokens.expand(len(text), -1, -1), encoder_hidden_states=media.values, output_hidden_states=True
    ).hidden_states
    for row, tokens in enumerate(text):
        state = qformer.layernorm(theirs.embeddings(tokens[None])[0])
        for layer, seen in zip(qformer.encoder.layer, queries, strict=False):
            inner, mixed = layer.attention.attention, []
            memory = torch.cat((seen[row], state))
            for head in range(inner.num_attention_heads):
                part = slice(head * 16, head * 16 + 16)
                query, key, value = inner.query(state)[:, part], inner.key(memory)[:, part], inner.value(memory)[:, part]
                for place, one in enumerate(query):
                    until = NUM_QUERIES + place + 1
                    mixed.append((key[:until] @ one / 4.0).softmax(0) @ value[:until])
            heads = torch.stack(mixed).unflatten(0, (-1, len(state))).transpose(0, 1).flatten(1)
            state = layer.attention.output(heads, state)
            state = layer.output(layer.intermediate(state), state)
        rows.append(state)
    return torch.stack(rows)


@torch.no_grad()
def test_writing_in_one_pass_equals_writing_over_cached_queries():
    theirs = reference("Blip2ForImageTextRetrieval", use_qformer_text_input=True)
    config = read_config(theirs.config.to_dict())
    ours, media = config.build(FEATURE_WIDTH, OUTPUT_WIDTH).eval().transformer, features(theirs)
    projector_alone(BLIP_2.transformer(config)).load(ours, weights(theirs))
    found = ours(media, TEXT, multimodal_causal(NUM_QUERIES, VALID))[:, NUM_QUERIES:]
    assert_close(found[VALID], text_over_cached_queries(theirs, media, TOKENS)[VALID])


KINDS = [
    pytest.param("Blip2ForConditionalGeneration", BLIP_2, id="blip-2"),
    pytest.param("InstructBlipForConditionalGeneration", INSTRUCT_BLIP, id="instructblip"),
]


@pytest.mark.parametrize(("kind", "layout"), KINDS)
def test_what_weft_writes_is_what_the_reference_holds(tmp_path, kind, layout):
    theirs = reference(kind)
    ours = read(theirs, tmp_path, layout)
    written = layout.projector(ours.config).from_weft(weights(ours))
    others = ("vision_model.", "language_model.")
    expected = {key: value for key, value in weights(theirs).items() if not key.startswith(others)}
    assert written.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in written.items())
    again = type(theirs.config)(
        **write_config(ours.config, FEATURE_WIDTH, theirs.config.model_type), vision_config=VISION, text_config=SPEAKER
    )
    fields = {**READER, "cross_attention_frequency": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    assert {key: getattr(again.qformer_config, key) for key in fields} | {"vocab_size": VOCABULARY} == fields
    assert read_config(again.to_dict()) == ours.config


def test_files_of_version_4_bring_a_buffer_that_is_dropped(tmp_path):
    theirs = reference("InstructBlipForConditionalGeneration")
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors") | {"qformer.embeddings.position_ids": torch.arange(12)[None]}
    config = read_config(theirs.config.to_dict())
    dropped = projector_alone(INSTRUCT_BLIP.projector(config)).load(config.build(FEATURE_WIDTH, OUTPUT_WIDTH), state)
    assert "not needed" in dropped["qformer.embeddings.position_ids"]


def to_lavis(key: str) -> str:
    """A key of `transformers`' Q-Former as LAVIS writes it, from its own class names and not from our table."""
    key = key.replace("qformer.", "Qformer.bert.", 1).replace("attention.attention.", "attention.self.")
    key = key.replace(".embeddings.layernorm.", ".embeddings.LayerNorm.")
    return key.replace("Qformer.bert.layernorm.", "Qformer.bert.embeddings.LayerNorm.")


@torch.no_grad()
@pytest.mark.parametrize("projection", ["opt_proj", "t5_proj", "llm_proj"])
@pytest.mark.parametrize(("kind", "layout"), KINDS)
def test_lavis_names_lead_to_the_same_parameters(tmp_path, kind, layout, projection):
    theirs = reference(kind)
    ours = read(theirs, tmp_path, layout)
    named = {
        to_lavis(key).replace("language_projection.", f"{projection}."): value
        for key, value in weights(theirs).items()
        if not key.startswith(("vision_model.", "language_model."))
    }
    rest = {"visual_encoder.cls_token": torch.ones(1), "ln_vision.weight": torch.ones(1)}
    again = ours.config.build(FEATURE_WIDTH, OUTPUT_WIDTH)
    dropped = projector_alone(LAVIS.projector(ours.config)).load(again, named | rest)
    assert dropped.keys() == rest.keys()
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in again.state_dict().items())
    written = LAVIS.projector(ours.config).from_weft(weights(again))
    assert {key.replace("opt_proj.", f"{projection}.") for key in written} == named.keys()


STAGE_ONE_HEADS = [
    "Qformer.cls.predictions.bias", "Qformer.cls.predictions.transform.dense.weight", "Qformer.cls.predictions.decoder.weight",
    "vision_proj.weight", "vision_proj.bias", "text_proj.weight", "itm_head.weight", "itm_head.bias", "temp",
]  # fmt: skip


@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
def test_a_lavis_file_of_the_first_stage_fills_the_transformer_and_says_what_it_leaves(vocabulary):
    full = QFormer.Config(num_queries=5, width=48, num_layers=4, num_heads=3, feed_forward_width=80, vocabulary=VOCABULARY)
    state = LAVIS.transformer(full).from_weft(weights(full.build(FEATURE_WIDTH, OUTPUT_WIDTH).transformer))
    state |= {"Qformer.bert.embeddings.position_ids": torch.arange(512)[None]}
    state |= dict.fromkeys(STAGE_ONE_HEADS, torch.ones(1))
    wanted = QFormer.Config(num_queries=5, width=48, num_layers=4, num_heads=3, feed_forward_width=80, vocabulary=vocabulary)
    ours = wanted.build(FEATURE_WIDTH, OUTPUT_WIDTH).transformer
    dropped = projector_alone(LAVIS.transformer(wanted)).load(ours, state)
    assert all("first stage" in dropped[key] for key in STAGE_ONE_HEADS)
    text = {key for key in dropped if "reads no text" in dropped[key] or "read no text" in dropped[key]}
    assert len(text) == (2 + 4 * 6 if vocabulary is None else 0)  # two tables, and six tensors in each of four blocks
    assert len(dropped) == len(STAGE_ONE_HEADS) + 1 + len(text)


@pytest.mark.parametrize("layout", [BLIP_2, INSTRUCT_BLIP, LAVIS])
def test_one_key_less_or_more_is_an_error_that_names_it(layout):
    config = QFormer.Config(num_queries=5, width=48, num_layers=2, num_heads=3, feed_forward_width=80, vocabulary=VOCABULARY)
    ours = config.build(FEATURE_WIDTH, OUTPUT_WIDTH)
    state = layout.projector(config).from_weft(weights(ours))
    for lost in state:
        with pytest.raises(CheckpointError, match="1 missing") as caught:
            layout.projector(config).load(ours, {key: value for key, value in state.items() if key != lost})
        assert lost in str(caught.value)
    with pytest.raises(CheckpointError, match=r"1 unknown \(a_stranger\)"):
        projector_alone(layout.projector(config)).load(ours, state | {"a_stranger": torch.ones(1)})


def test_positions_that_weft_has_not_are_refused():
    with pytest.raises(CheckpointError, match="absolute positions, the config asks for 'relative_key'"):
        read_config({"model_type": "instructblip", "qformer_config": {"position_embedding_type": "relative_key"}})
    with pytest.raises(CheckpointError, match="set its vocabulary"):
        write_config(QFormer.Config(), 1408, "instructblip")


def test_published_sizes_have_the_published_parameters():
    def count(module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        blip_xl, blip_opt = (QFormer.Config().build(1408, width) for width in (2048, 4096))
        instruct = read_config({"model_type": "instructblip"}).build(1408, 4096)
        first_stage = QFormer.Config(vocabulary=30_523).build(1408, 4096)
    queries = 32 * 768
    assert blip_opt.transformer.queries.numel() == queries
    assert count(blip_opt.transformer) - queries == 105_137_664
    assert (count(blip_xl), count(blip_opt)) == (106_737_152, 108_312_064)  # trained in stage 2, XL and OPT-6.7B
    assert count(instruct.transformer) - queries == 185_659_392
    assert count(instruct) == 188_833_792  # trained in InstructBLIP-7B
    tables = count(first_stage.transformer.token_embedding) + count(first_stage.transformer.position_embedding)
    assert count(first_stage.transformer) - queries == 185_660_160
    assert count(first_stage.transformer) - queries - tables == 161_825_280
