"""The visual expert: which tokens it takes, that nothing else changes, in training, packed and while decoding."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_model import picture, question, scatter, tiny_model, tokenizer

from weft.core.attention_rule import AttentionRule
from weft.core.catalogue import parts
from weft.core.conversation import Conversation, assistant, user
from weft.core.errors import ConfigError
from weft.core.media import MediaTokens
from weft.core.sequence import TokenSequence
from weft.data.collate import collate
from weft.data.images import ImageTransform
from weft.data.packing import pack
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.fusion.visual_expert import VisualExpert
from weft.inference.cache import KeyValueCache
from weft.inference.continuation import before, behind, with_tokens
from weft.inference.generate import Decoding, read
from weft.language_models.decoder import Decoder
from weft.layers.feed_forward import GatedFeedForward
from weft.objectives.next_token import NextToken
from weft.projectors.glu import GLU
from weft.projectors.mlp import MLP
from weft.systems.multimodal_lm import MultimodalLM, Stream

COGVLM = (TokenConcatenation.Config(shared_positions=True), VisualExpert.Config(attention=True, closing="text"))
MONO = (TokenConcatenation.Config(), VisualExpert.Config(attention=False))
TOLERANCE = 1e-5  # fp32, 2 layers: the same products in other blocks, times max(1, largest value)
LANGUAGE_MODELS = [name for name, part in parts("language_models").items() if getattr(part, "slots", ())]


def randomised(module):
    """Weights large enough that every part matters."""
    scatter(module, scale=0.15)
    return module.eval()


def system(fusions=COGVLM, projector=None):
    """A tiny system whose experts are unlike the layers beside them."""
    torch.manual_seed(0)
    stream = Stream.Config(encoder=ClipVision.Config.tiny(), projector=projector or GLU.Config.tiny())
    decoder = replace(Decoder.Config.tiny(), vocabulary=300, context=512)
    return randomised(MultimodalLM.Config(language_model=decoder, streams={"image": stream}, fusions=fusions).build())


def processor_of(model):
    settings = Processor.Config(template="vicuna_v1", transforms={"image": ImageTransform(size=32)})
    return settings.build(tokenizer(), model.config)


def samples(model):
    """Without a picture, with one, and with two side by side."""
    talks = [
        Conversation((user("and now?"), assistant("blue"))),
        Conversation((user(picture(1), "which colour is it?"), assistant("red green"))),
        Conversation((user(picture(2), picture(3), "which?"), assistant("white"))),
    ]
    return [processor_of(model).encode(replace(talk, id=str(n))) for n, talk in enumerate(talks)]


def assert_close(ours, theirs):
    assert (ours - theirs).abs().max() <= TOLERANCE * max(1.0, float(theirs.abs().max()))


def sequence_of(language_model, modality, seed=0):
    """A row of embedded tokens of the given modalities."""
    embeddings = torch.randn(
        1, len(modality), language_model.config.output_width, generator=torch.Generator().manual_seed(seed)
    )
    modality = torch.tensor([modality])
    positions = torch.arange(modality.shape[1])[None]
    return TokenSequence(embeddings, positions, AttentionRule.causal(*modality.shape), modality)


def expert_of(sequence, media=None, **settings):
    with torch.no_grad():
        return VisualExpert.Config(**settings).build().fuse(sequence, media or {})


def test_the_closing_token_of_each_medium_goes_through_the_texts_layers():
    """T B p p E T, then B p E twice side by side."""
    sequence = sequence_of(Decoder.Config.tiny().build(), [0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
    spans = torch.tensor([[0, 0, 0, 1, 4], [1, 0, 0, 6, 3], [2, 0, 0, 9, 3]])
    item = torch.tensor([0] * 4 + [1] * 3 + [2] * 3)
    media = {"image": MediaTokens(torch.zeros(10, 64), item, spans)}
    routing = expert_of(sequence, media, closing="text").routing
    assert routing.visual[0].tolist() == [bool(x) for x in (0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0)]
    assert expert_of(sequence, media, closing="visual").routing.visual.equal(sequence.modality == 1)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_experts_reach_media_and_what_follows_and_nothing_before(name):
    torch.manual_seed(0)
    plain = randomised(parts("language_models")[name].Config.tiny().build())
    model = copy.deepcopy(plain)
    fusion = VisualExpert.Config().build()
    fusion.install(model)
    causal = getattr(model, "causal", True)
    sequence = expert_of(sequence_of(model, [0, 0, 0, 1, 1, 1, 0, 0]))
    text = sequence_of(model, [0] * 8)
    with torch.no_grad():
        dense = plain(text)[0]
        assert torch.allclose(
            model(sequence)[0], dense, atol=TOLERANCE * max(1.0, float(dense.abs().max()))
        )  # experts are copies
        for parameter_name, parameter in model.named_parameters():
            if ".routes." in parameter_name:
                parameter.mul_(0.7).add_(0.01)
        routed = model(sequence)[0]
        assert torch.equal(model(expert_of(text))[0], dense), "text alone is the language model's, bit for bit"
        if causal:
            assert torch.equal(routed[:, :3], model(expert_of(sequence_of(model, [0, 0, 0, 1, 1, 1, 0, 0])))[0][:, :3])
            assert_close(routed[:, :3], dense[:, :3])
        assert all((routed[0, t] - dense[0, t]).abs().max() > 1e-3 for t in range(3, 8))


def test_other_experts_leave_what_stands_before_the_media_bitwise_as_it_was():
    model = system().language_model
    sequence = expert_of(sequence_of(model, [0, 0, 0, 1, 1, 1, 0, 0]))
    with torch.no_grad():
        first = model(sequence)[0]
        for name, parameter in model.named_parameters():
            if ".routes." in name:
                parameter.copy_(torch.randn_like(parameter))
        second = model(sequence)[0]
    assert torch.equal(first[:, :3], second[:, :3])
    assert (first[:, 3:] - second[:, 3:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("attention", [False, True], ids=["feed-forward", "attention too"])
def test_with_copies_a_mask_of_ones_is_a_mask_of_zeros_bit_for_bit(attention):
    torch.manual_seed(0)
    model = randomised(Decoder.Config.tiny().build())
    VisualExpert.Config(attention=attention).build().install(model)
    with torch.no_grad():
        ones, zeros = (model(expert_of(sequence_of(model, [kind] * 9)))[0] for kind in (1, 0))
    assert torch.equal(ones, zeros)


def test_no_token_passes_both_experts():
    model = system(MONO, MLP.Config())
    seen = {"text": 0, "visual": 0}
    for name, module in model.language_model.named_modules():
        if isinstance(module, GatedFeedForward):
            kind = "visual" if "routes" in name else "text"
            hook = lambda m, args, out, kind=kind: seen.__setitem__(kind, seen[kind] + out.shape[:-1].numel())  # noqa: E731
            module.register_forward_hook(hook)
    batch = collate(samples(model))
    with torch.no_grad():
        model(batch)
    layers = len(model.language_model.blocks)
    assert seen == {kind: layers * int((batch.main.modality == n).sum()) for n, kind in enumerate(("text", "visual"))}


def gradients(model, batch):
    model.zero_grad()
    NextToken.Config().build()(model, batch).mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_idle_experts_join_the_graph_and_change_no_bit():
    model = system()
    batch = collate(samples(model)[:1])
    found = {name: grad for name, grad in gradients(model, batch).items() if ".routes." in name}
    assert found and all(grad is not None and not grad.any() for grad in found.values())
    bare = replace(model.config, fusions=COGVLM[:1]).build().eval()
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if ".routes." not in name})
    assert torch.equal(model(batch).logits(), bare(batch).logits())


@pytest.mark.parametrize("fusions", [COGVLM, MONO], ids=["cogvlm", "mono-internvl"])
def test_packed_samples_have_the_logits_and_gradients_that_they_have_alone(fusions):
    model = system(fusions)
    encoded = samples(model)
    rows = pack(encoded, 1024)
    assert len(rows) == 1
    packed, alone = collate(rows), collate(encoded)
    with torch.no_grad():
        together = model(packed).logits()[0]
        for number, sample in enumerate(encoded, start=1):
            assert_close(together[packed.main.segment[0] == number], model(collate([sample])).logits()[0])
    ours, theirs = gradients(model, packed), gradients(model, alone)
    for name in (name for name in ours if ".routes." in name):
        assert_close(ours[name], theirs[name])


@pytest.mark.parametrize("fusions", [COGVLM, MONO], ids=["cogvlm", "mono-internvl"])
def test_decoding_equals_the_full_forward(fusions):
    """Rows of different lengths with no, one and two pictures; what is generated is text at the next position."""
    model = system(fusions)
    encoded = samples(model)
    decoding, answer = Decoding(model), [11, 45, 7]
    steps = [decoding.prefill(collate(encoded))]
    steps += [decoding.step(torch.full((3,), token)) for token in answer]
    for row, sample in enumerate(encoded):
        with torch.no_grad():
            full = model(with_tokens(collate([sample]), answer)).logits()[0]
        assert_close(torch.stack([step[row] for step in steps]), full[-4:])


def test_a_conversation_may_be_cut_between_two_pictures_side_by_side():
    model = system()
    batch = collate(samples(model)[2:])
    first, second = batch.media["image"].spans[:, 3].tolist()
    length = batch.main.tokens.shape[1]
    with torch.no_grad():
        whole = model(batch).hidden
        for cut in (first, second, length - 2):
            cache = KeyValueCache(len(model.language_model.blocks))
            pieces = [read(model, before(batch, cut), cache), read(model, behind(batch, cut), cache)]
            assert_close(torch.cat(pieces, 1), whole)


def test_a_prompt_may_end_with_a_picture():
    """The next token's logits are then those of a visual token, computed for the last layer's one row alone."""
    model = system(MONO, MLP.Config())
    batch = collate(samples(model)[1:2])
    start, length = batch.media["image"].spans[0, 3:].tolist()
    prompt = before(batch, start + length)
    with torch.no_grad():
        assert_close(Decoding(model).prefill(prompt), model(prompt).logits()[:, -1])


def test_patches_share_a_position_and_the_rule_still_counts_tokens():
    model = system()
    sample = processor_of(model).encode(question(picture(1), "which colour is it?"), reply=True)
    text = collate([sample]).main
    count = model.config.num_positions("image")
    start = int((text.modality[0] == 1).nonzero()[0])
    inside = text.positions[0, start : start + count].tolist()
    assert inside == [start, *[start + 1] * (count - 2), start + 2]
    length = len(sample)
    assert text.positions[0, start + count :].tolist() == list(range(start + 3, length - count + 3))
    assert text.order[0].tolist() == list(range(length))
    assert samples(model)[0].positions is None


def test_a_model_without_experts_is_never_routed():
    model = tiny_model()
    batch = collate([model.processor.encode(question(picture(1), "which?"), reply=True)])
    with torch.no_grad():
        assert model.system.sequence(batch).routing is None


def test_what_cannot_be_installed_is_refused():
    with pytest.raises(ConfigError, match="reads no stream"):
        VisualExpert.Config(streams=("image",))
    model = Decoder.Config.tiny().build()
    VisualExpert.Config().build().install(model)
    with pytest.raises(ConfigError, match="has a visual expert already"):
        VisualExpert.Config().build().install(model)
    model = Decoder.Config.tiny().build()
    model.blocks[0].feed_forward = torch.nn.Linear(64, 64)
    with pytest.raises(ConfigError, match="the feed_forward of Decoder has no routes"):
        VisualExpert.Config().build().install(model)
