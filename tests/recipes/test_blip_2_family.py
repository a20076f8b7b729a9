"""BLIP-2, InstructBLIP and MiniGPT-4: published counts, what each stage reads and learns, what an instruction changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.checkpoints.blip_2 import STREAM, lavis_stream, system_of
from weft.checkpoints.weight_files import weights
from weft.core.batch import IGNORE
from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError
from weft.data.collate import collate
from weft.encoders.video import Video
from weft.language_models.t5 import T5
from weft.recipes import blip_2, instructblip, minigpt_4
from weft.recipes.shrinking import TINY_VOCABULARY, tiny_tokenizer
from weft.systems.accounting import without_values
from weft.systems.multimodal_lm import MultimodalSystem, Stream

PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
COUNTS = [
    (blip_2.blip_2, "opt-2.7b", 3_744_761_856, None),
    (blip_2.blip_2, "opt-6.7b", 7_752_738_304, 108_312_064),
    (blip_2.blip_2, "flan-t5-xl", 3_942_446_592, 106_737_152),
    (blip_2.blip_2, "flan-t5-xxl", 12_229_596_672, 108_312_064),
    (instructblip.instructblip, "vicuna-7b", 7_913_209_856, 188_833_792),
    (instructblip.instructblip, "vicuna-13b", 14_191_448_064, None),
    (instructblip.instructblip, "flan-t5-xl", 4_022_968_320, None),
    (minigpt_4.minigpt_4, "7b", None, 3_149_824),
    (minigpt_4.minigpt_4, "13b", None, 3_937_280),
    (minigpt_4.minigpt_4, "llama-2-7b", None, 5632 * 4096 + 4096),
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(50)


@pytest.mark.parametrize(("recipe", "size", "whole", "trained"), COUNTS)
def test_published_counts(recipe, size, whole, trained):
    stage = next(s for s in recipe(size).stages if isinstance(s.system, MultimodalSystem.Config))
    with without_values():
        system = stage.system.build()
    (pattern,) = stage.train
    learned = sum(p.numel() for n, p in system.named_parameters() if n.startswith(pattern.removesuffix("*")))
    zeros = 39 * 1408  # `transformers` keeps biases of the tower's keys, which are zero and change nothing
    assert whole in (None, sum(p.numel() for p in system.parameters()) + zeros)
    assert trained in (None, learned)


def on_t5(stage, template):
    """A tiny stage on Flan-T5."""
    model = replace(T5.Config.tiny(), vocabulary=TINY_VOCABULARY)
    return replace(
        stage,
        system=system_of(model, stage.system.streams[STREAM]),
        processor=replace(stage.processor, template=template),
    )


def ready(stage, tokenizer):
    return stage.processor.build(tokenizer, stage.system)


def asked(question: str, answer: str | None = None) -> Conversation:
    return Conversation((user(Media(PICTURE), question), *(() if answer is None else (assistant(answer),))), id="7")


def test_queries_stand_before_the_begin_token_and_only_the_caption_is_learned(tokenizer):
    stage = blip_2.tiny().stage("generate")
    sample = ready(stage, tokenizer).encode(asked("Describe.", "a red 7"))
    queries = stage.system.streams[STREAM].num_tokens
    said = tokenizer.encode("a red 7\n")
    assert sample.modality.tolist() == [1] * queries + [0] * (len(sample) - queries)
    assert sample.tokens[queries:].tolist() == [*tokenizer.begin, *said]
    assert (sample.targets[:queries] == IGNORE).all()
    assert sample.targets[queries:].tolist() == [*said, IGNORE]


def test_flan_t5_reads_the_first_words_of_a_caption_and_writes_the_rest(tokenizer):
    processor = ready(on_t5(blip_2.tiny().stage("generate"), "blip_2_t5_prefix"), tokenizer)
    caption = "a red 7 at the top and a blue 3"
    sample = processor.encode(asked("Describe.", caption))
    queries = int(sample.modality.sum())
    read = tokenizer.decode(sample.tokens[queries:])
    written = tokenizer.decode(sample.decoder.targets)
    assert f"{read.strip()} {written.strip()}".strip() == caption and written.strip()
    prompt = processor.encode(asked("a photo of"), reply=True)
    assert tokenizer.decode(prompt.tokens[queries:]).strip() == "a photo of"


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["llama", "t5"])
def test_another_instruction_gives_other_visual_tokens_and_another_picture_other_logits(decoder, tokenizer):
    stage = instructblip.tiny().stages[0]
    stage = stage if decoder == "llama" else on_t5(stage, "instructblip")
    torch.manual_seed(0)
    system, processor = stage.system.build().eval(), ready(stage, tokenizer)
    for parameter in system.parameters():
        parameter.normal_(std=0.3) if parameter.dim() > 1 else None
    one, other = (collate([processor.encode(asked(q), reply=True)]) for q in ("what is it?", "how many?"))
    words = tokenizer.instructions
    assert one.media[STREAM].instruction[0].tolist() == [*words.begin, *words.encode("what is it?"), *words.end]
    features = system.encode(one)
    tokens = [system.project(batch, features)[STREAM].values for batch in (one, other)]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    seen = Conversation((user(Media(255 - PICTURE), "what is it?"),), id="7")
    changed = system(collate([processor.encode(seen, reply=True)])).logits()
    assert (changed - system(one).logits()).abs().max() > 1e-3


def test_an_instruction_ends_before_the_first_answer_that_is_learned(tokenizer):
    processor, words = ready(instructblip.tiny().stages[0], tokenizer), tokenizer.instructions
    spoken = Conversation((user(Media(PICTURE), "q"), assistant("a"), user("r"), assistant("b")), id="7")
    (medium,) = processor.encode(spoken).media[STREAM]
    assert words.decode(medium.instruction) == "q"
    silent = replace(spoken, messages=(spoken.messages[0], replace(spoken.messages[1], train=False), *spoken.messages[2:]))
    (medium,) = processor.encode(silent).media[STREAM]
    assert words.decode(medium.instruction) == "q ar"


def test_of_a_long_instruction_its_end_is_read(tokenizer):
    stage = instructblip.tiny().stages[0]
    short = replace(stage.processor, instruction_tokens=9).build(tokenizer, stage.system)
    (medium,) = short.encode(asked("what is in the middle?"), reply=True).media[STREAM]
    words = tokenizer.instructions
    assert len(medium.instruction) == 9
    assert words.decode(medium.instruction) == "what is in the middle?"[-(9 - len(words.begin)) :]


def test_without_a_tokenizer_for_instructions_nothing_is_built(tokenizer):
    with pytest.raises(ConfigError, match="qformer_tokenizer"):
        ready(instructblip.tiny().stages[0], tokenizer.with_instructions(None))


def test_a_tokenizer_travels_with_that_of_instructions(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = type(tokenizer).from_file(tmp_path)
    assert again.instructions.encode("a 7") == tokenizer.instructions.encode("a 7")
    assert again.encode("a 7") == tokenizer.encode("a 7")
    assert ready(blip_2.tiny().stage("generate"), tokenizer).tokenizer.instructions is None  # whose projector reads none


def test_a_clip_of_four_frames_is_four_times_the_queries():
    plain = instructblip.instructblip().system.streams[STREAM]
    clip = Stream.Config(encoder=Video.Config(image=plain.encoder), projector=plain.projector)
    assert clip.projector.num_tokens(replace(clip.encoder.layout(), frames=4)) == 128
    tiny = instructblip.tiny().system.streams[STREAM]
    stream = Stream.Config(encoder=Video.Config(image=tiny.encoder), projector=tiny.projector).build(40)
    layout = (replace(tiny.encoder.layout(), frames=4),)
    with torch.no_grad():
        seen = stream.encoder(torch.randn(4, 3, 64, 64), torch.zeros(4, dtype=torch.long), layout)
        tokens = stream.projector(replace(seen, instruction=torch.tensor([[5, 6]])))
    assert tokens.values.shape == (4 * tiny.projector.num_queries, 40)


def test_minigpt_4_reads_its_published_sequence(tokenizer):
    processor = ready(minigpt_4.tiny().stage("tune"), tokenizer)
    sample = processor.encode(asked("Describe this image in detail.", "a red 7"))
    queries = int(sample.modality.sum())
    first = int(sample.modality.argmax())
    learned = sample.targets[sample.targets != IGNORE]
    assert sample.tokens[:first].tolist() == [*tokenizer.begin, *tokenizer.encode("###Human: <Img>")]
    behind = tokenizer.encode("</Img> Describe this image in detail. ###Assistant: ")
    said = tokenizer.encode("a red 7###")
    assert sample.tokens[first + queries :].tolist() == behind + said
    assert learned.tolist() == said


def test_minigpt_4_on_llama_2_has_no_queries_and_four_patches_a_token(tokenizer):
    stage = minigpt_4.minigpt_4("llama-2-7b").stage("tune")
    stream = stage.system.streams[STREAM]
    assert stream.projector.num_tokens(stream.encoder.layout()) == 64
    tiny = minigpt_4.tiny().stage("tune").system.streams[STREAM]
    encoder = replace(tiny.encoder, keep_class_token=False)
    small = replace(stage, system=system_of(minigpt_4.tiny().system.language_model, replace(stream, encoder=encoder)))
    transforms = {STREAM: replace(stage.processor.transforms[STREAM], size=64)}
    processor = replace(stage.processor, transforms=transforms).build(tokenizer, small.system)
    sample = processor.encode(asked("Describe this image in detail.", "a red 7"))
    first, patches = int(sample.modality.argmax()), int(sample.modality.sum())
    assert sample.tokens[:first].tolist() == [*tokenizer.begin, *tokenizer.encode("[INST] <Img>")]
    behind, said = tokenizer.encode("</Img> Describe this image in detail. [/INST] "), tokenizer.encode("a red 7</s>")
    assert patches == 4 and sample.tokens[first + patches :].tolist() == behind + said
    assert sample.targets[sample.targets != IGNORE].tolist() == said
    system = small.system.build()
    with torch.no_grad():
        assert system(collate([sample])).logits().isfinite().all()


@pytest.mark.parametrize("vocabulary", [None, 61])
def test_a_lavis_file_fills_a_stream_and_one_key_less_or_more_is_an_error(vocabulary):
    stream = blip_2.tiny().stage("caption").system.streams[STREAM]
    stream = replace(stream, projector=replace(stream.projector, vocabulary=vocabulary))
    first, second = stream.build(40), stream.build(40)
    key_map = lavis_stream(stream)
    state = key_map.from_weft(weights(first))
    assert {"query_tokens", "ln_vision.weight", "opt_proj.weight"} <= state.keys()
    assert all(k.startswith(("visual_encoder.", "ln_vision.", "query_tokens", "Qformer.bert.", "opt_proj.")) for k in state)
    state = {key.replace("opt_proj.", "llm_proj."): value for key, value in state.items()}
    dropped = key_map.load(second, state | {"temp": torch.ones(()), "itm_head.weight": torch.ones(2, 4)})
    assert dropped.keys() == {"temp", "itm_head.weight"}
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in second.state_dict().items())
