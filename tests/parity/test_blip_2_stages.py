"""BLIP-2's stages joined: the first starts from a tower and a BERT, the second goes on with its Q-Former before a language
model, and each reads with its own tokenizer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_models import randomise
from safetensors.torch import load_file
from tokenizer_files import write_opt_tokenizer, write_reader_tokenizer
from torch.nn.functional import log_softmax

from weft.checkpoints.blip_2_pretraining import read_bert
from weft.checkpoints.weight_files import weights
from weft.core.attention_rule import AttentionRule
from weft.core.errors import CheckpointError, ConfigError
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.language_models.bert import Bert
from weft.recipes import blip_2, blip_2_pretraining
from weft.recipes.loading import load_system
from weft.recipes.shrinking import tiny_tokenizer
from weft.recipes.starting_weights import starting_stages
from weft.recipes.training_run import TrainingRun
from weft.systems.accounting import num_parameters, without_values
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.multimodal_lm import MultimodalLM
from weft.training.model_folder import read_weights
from weft.training.trainer import Trainer

transformers = pytest.importorskip("transformers")

READER, WIDTH = "streams.image.projector", 32


def short(recipe):
    """The first two stages of the tiny recipe at two steps each."""
    stages = (replace(stage, steps=2, batch_size=4) for stage in recipe.stages[:2])
    return replace(recipe, stages=tuple(stages))


def bert_of(system: FusionEncoder.Config, vocabulary: int):
    """A reference BERT of the form of a system's Q-Former."""
    reader = system.reader
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=reader.width, num_hidden_layers=reader.num_layers,
        num_attention_heads=reader.num_heads, intermediate_size=reader.feed_forward_width,
        max_position_embeddings=reader.context,
    )  # fmt: skip
    return randomise(transformers.BertForPreTraining(config))


def write_parts(folder: Path) -> tuple[str, ...]:
    """Published weights for what the tiny recipe's stages start from, as `weft train --from` is told."""
    recipe = blip_2.tiny()
    bert, opt = folder / "bert", folder / "opt"
    write_reader_tokenizer(bert)
    ids = json.loads((bert / "tokenizer.json").read_text())
    ids["added_tokens"] = [token for token in ids["added_tokens"] if token["content"] != "[DEC]"]  # which BERT has not
    (bert / "tokenizer.json").write_text(json.dumps(ids))
    bert_of(recipe.stage("represent").system, Tokenizer.from_file(bert).vocabulary).save_pretrained(bert)
    write_opt_tokenizer(opt)
    model = recipe.stage("generate").system.language_model
    config = transformers.OPTConfig(
        vocab_size=model.vocabulary, hidden_size=model.width, word_embed_proj_dim=model.width, ffn_dim=model.feed_forward_width,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_heads, max_position_embeddings=model.context,
    )  # fmt: skip
    randomise(transformers.OPTForCausalLM(config)).save_pretrained(opt)
    return f"{READER}={bert}", f"language_model={opt}"


def with_reader_of(recipe, vocabulary: int):
    """The recipe whose first stage has one token more than a BERT of this vocabulary, the one that captions begin with."""
    first = recipe.stages[0]
    stream = first.system.streams["image"]
    reader = replace(stream.projector, vocabulary=vocabulary + 1)
    system = replace(first.system, streams={"image": replace(stream, projector=reader)}, start_token=vocabulary)
    return replace(recipe, stages=(replace(first, system=system), *recipe.stages[1:]))


def test_the_second_stage_goes_on_with_what_the_first_learned(tmp_path):
    folder = Trainer(short(blip_2.tiny()), tmp_path / "run", tokenizer=tiny_tokenizer(20)).fit().parent
    first, second = (read_weights(folder / "stages" / name / "model.safetensors") for name in ("represent", "generate"))
    encoder = {name for name in second if name.startswith("streams.image.encoder.")}
    assert encoder and all(torch.equal(second[name], first[name]) for name in encoder)
    reader = {name for name in second if name.startswith(READER) and "projector.output" not in name}
    assert reader == {
        n for n in first if n.startswith(READER) and not any(w in n for w in ("token_emb", "position_emb", ".text."))
    }
    nearest = max((second[name] - first[name]).abs().max() for name in reader)
    assert 0 < nearest < 0.05  # two steps of at most 2e-3 from there


def test_published_sizes_take_all_of_the_q_former_but_its_text():
    recipe = blip_2.blip_2()
    represent, generate = recipe.stages[:2]
    assert represent == blip_2_pretraining.blip_2_pretraining("vit-g").stages[0]
    with without_values():
        projectors = [stage.system.build().get_submodule(READER) for stage in (represent, generate)]
    sizes = [num_parameters(projector) for projector in projectors]
    text = 30_523 * 768 + 512 * 768 + 12 * (2 * 768 * 3072 + 3072 + 768 + 2 * 768)
    projection = 768 * 2560 + 2560
    assert sizes[0] - text == sizes[1] - projection == 105_137_664 + 32 * 768


def test_every_stage_starts_from_published_weights_and_reads_with_its_tokenizer(tmp_path):
    start = write_parts(tmp_path)
    bert, opt = tmp_path / "bert", tmp_path / "opt"
    recipe = short(with_reader_of(blip_2.tiny(), Tokenizer.from_file(bert).vocabulary))
    trainer = TrainingRun(recipe=recipe, start=start).trainer(tmp_path / "run")
    before = {}

    def remembering(name, fill):
        def filled(system):
            fill(system)
            before[name] = {key: value.clone() for key, value in system.state_dict().items()}

        return filled

    trainer.initialise = {name: remembering(name, fill) for name, fill in trainer.initialise.items()}
    folder = trainer.fit().parent
    assert before.keys() == {"represent", "generate"}
    words = load_file(bert / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(before["represent"][f"{READER}.transformer.token_embedding.weight"][:-1], words)
    table = load_file(opt / "model.safetensors")["model.decoder.embed_tokens.weight"]
    for state in (before["generate"], read_weights(folder / "stages" / "generate" / "model.safetensors")):
        assert torch.equal(state["language_model.embedding.weight"], table)
    first, last = load_system(folder / "stages" / "represent"), load_system(folder / "model")
    assert first.processor.tokenizer.special["[DEC]"] == first.system.config.start_token
    assert last.processor.tokenizer.encode("a red cat") == Tokenizer.from_file(opt).encode("a red cat")


def test_a_text_alone_is_read_as_the_bert_reads_it():
    """Blocks, tables and head of the file: words that BERT writes for masked ones, without token types, come out the same."""
    config = blip_2_pretraining.tiny().system
    theirs = bert_of(config, vocabulary=90)
    theirs.bert.embeddings.token_type_embeddings.weight.data.zero_()  # a Q-Former's text has no types
    torch.manual_seed(0)
    ours = config.build().eval()
    drawn = {name: value.clone() for name, value in ours.state_dict().items()}
    form = Bert.Config(vocabulary=90, context=64, width=WIDTH, num_layers=2, num_heads=2, feed_forward_width=48)
    read_bert(ours, weights(theirs), form, "bert")
    tokens = torch.randint(1, 90, (3, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(input_ids=tokens).prediction_logits
        hidden = ours.transformer(None, tokens, AttentionRule.bidirectional(3, 7))
        found = ours.words(hidden)
    assert (found[..., :90] - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    assert log_softmax(expected, -1).std() > 0.1  # weights under which every part matters
    kept = {name for name, value in ours.state_dict().items() if torch.equal(value, drawn[name])}
    outside = (
        "encoder.",
        "queries",
        "before_feed_forward",
        "media_projection",
        "text_projection",
        "matching_head",
        "temperature",
    )
    assert kept == {name for name in drawn if any(part in name for part in outside)}
    table = f"{READER}.transformer.token_embedding.weight"
    assert torch.equal(ours.state_dict()[table][90:], drawn[table][90:])
    for block in ours.transformer.blocks:
        query, text = block.feed_forward.query.state_dict(), block.feed_forward.text.state_dict()
        assert all(torch.equal(value, text[name]) for name, value in query.items())


def test_a_bert_that_does_not_fit_is_refused():
    ours = blip_2_pretraining.tiny().system.build()
    theirs = weights(bert_of(ours.config, vocabulary=90))
    form = Bert.Config(vocabulary=90, context=64, width=WIDTH, num_layers=2, num_heads=2, feed_forward_width=48)
    with pytest.raises(CheckpointError, match=r"has width, heads.* give a BERT of its form"):
        read_bert(ours, theirs, replace(form, num_heads=4), "bert")
    short_of = {name: value for name, value in theirs.items() if "layer.1.output.dense.weight" not in name}
    with pytest.raises(CheckpointError, match=r"1 missing \(blocks\.1\.feed_forward\.down\.weight\)"):
        read_bert(ours, short_of, form, "bert")
    with pytest.raises(CheckpointError, match=r"1 unknown \(a_stranger\)"):
        read_bert(ours, theirs | {"a_stranger": torch.ones(1)}, form, "bert")


def test_a_part_is_filled_where_it_first_stands():
    recipe = blip_2.tiny()
    assert list(starting_stages(["language_model=a", f"{READER}=b"], recipe)) == ["represent", "generate"]
    with pytest.raises(ConfigError, match="language_modle"):
        starting_stages(["language_modle=a"], recipe)
    lm = MultimodalLM.Config(language_model=recipe.system.language_model)
    taking = replace(recipe.stages[2], system=lm, new=("language_model.blocks.*",), takes={"represent": {"*": ""}})
    with pytest.raises(ConfigError, match="stage 'caption' takes language_model from earlier stages; leave out --from"):
        starting_stages(["language_model=a"], replace(recipe, stages=(recipe.stages[0], taking)))


def test_the_first_stage_reads_with_the_tokenizer_of_instructions_where_there_is_one(tmp_path):
    stage, tokenizer = blip_2.tiny().stage("represent"), tiny_tokenizer(20)
    assert stage.processor.build(tokenizer, stage.system).tokenizer is tokenizer.instructions
    alone = tokenizer.with_instructions(None)
    assert isinstance(ready := stage.processor.build(alone, stage.system), Processor) and ready.tokenizer is alone
