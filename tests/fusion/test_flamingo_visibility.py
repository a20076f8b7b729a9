"""Cross-attention as Flamingo has it: who sees which picture, what gates let through, in packed rows and behind a cache.

The reference is written from the papers alone: dense masks from counted tags, one head and one token at a time.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_model import picture, scatter

from weft.core.attention_rule import AttentionRule
from weft.core.batch import MultimodalBatch
from weft.core.conversation import Conversation, assistant, user
from weft.core.errors import ConfigError, MediaTokenMismatch
from weft.core.sequence import TokenSequence
from weft.data.collate import collate
from weft.data.images import ImageTransform
from weft.data.packing import pack
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.data.visibility import visible_media
from weft.encoders.clip import ClipVision
from weft.fusion.cross_attention import CrossAttention, GatedDense, GatedSwiGLU, beside
from weft.inference.chat import ChatSession
from weft.inference.generate import Decoding
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.inference.score_choices import score_choices
from weft.language_models.decoder import Decoder
from weft.layers.added_tokens import AddedTokens
from weft.objectives.next_token import NextToken
from weft.projectors.perceiver import Perceiver
from weft.systems.multimodal_lm import MultimodalLM, Stream

VOCABULARY = 300
WIDTH = 24  # of the media tokens
FORMS = {
    "flamingo": CrossAttention.Config(block=GatedDense(), memory_width=WIDTH),
    "openflamingo": CrossAttention.Config(
        block=GatedDense(num_heads=3, head_width=8, activation="gelu"), every=2, first=1, memory_width=WIDTH
    ),
    "idefics": CrossAttention.Config(
        block=GatedSwiGLU(gates="vector"), every=2, visibility="preceding_in_document", memory_width=WIDTH
    ),
    "llama": CrossAttention.Config(
        block=GatedSwiGLU(num_key_value_heads=2, blind_feed_forward=False), every=2, first=1, visibility="run"
    ),
    "llama as in transformers": CrossAttention.Config(
        block=GatedSwiGLU(num_key_value_heads=2, blind_feed_forward=False, reference="hf"), visibility="run"
    ),
    "every picture so far": CrossAttention.Config(visibility="all_preceding"),
}
every_form = pytest.mark.parametrize("form", FORMS)
TOLERANCE = 1e-5  # fp32, 2 layers, sums in another order; times max(1, largest value)


def assert_close(ours, reference, tolerance=TOLERANCE):
    assert float((ours - reference).detach().abs().amax()) <= tolerance * max(1.0, float(reference.detach().abs().amax()))


@cache
def tokenizer():
    texts = ["which colour is it?", "red green blue white", "and now? again."]
    special = ("<pad>", "<s>", "</s>")
    return Tokenizer.train(texts * 4, VOCABULARY - 2, special).with_special(("<|endofchunk|>", "<image>"))


def config(form):
    return MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=VOCABULARY - 2, context=512),
        streams={
            "image": Stream.Config(
                encoder=ClipVision.Config.tiny(),
                projector=Perceiver.Config(num_latents=4, num_layers=1, num_heads=2, head_width=8),
            )
        },
        fusions=(FORMS[form],),
        added_tokens=AddedTokens.Config(tied=True),
    )


def set_gates(system, value):
    for name, parameter in system.named_parameters():
        if name.endswith(("attention_gate", "feed_forward_gate")):
            parameter.data.fill_(value)


def setting(form, gate=0.5):
    system = config(form).build().eval()
    scatter(system, scale=0.15)
    set_gates(system, gate)
    processor = Processor.Config(template="flamingo", transforms={"image": ImageTransform(size=32)})
    return Model(system, processor.build(tokenizer(), system.config))


DOCUMENT = Conversation(
    (
        user("and now? ", picture(1), " which "),
        assistant("red green"),
        user(picture(2), picture(3)),
        assistant("blue"),
        user("again. "),
        assistant("white"),
    ),
    id="document",
)
SHORT = Conversation((user(picture(4)), assistant("red")), id="short")
TEXT = Conversation((user("which colour"), assistant("green blue")), id="text")


def encoded(model, *conversations):
    return [model.processor.encode(conversation) for conversation in conversations]


def shown(batch, **pictures):
    """The batch with other pixels in some items."""
    units = batch.media["image"].units.clone()
    for item, seed in pictures.items():
        units[int(item.removeprefix("item"))] = torch.randn(units[0].shape, generator=torch.Generator().manual_seed(seed))
    return replace(batch, media={"image": replace(batch.media["image"], units=units)})


# what a token sees


def test_the_text_time_of_the_papers():
    tags = [1, 3]  # t, I, t, I, t
    found = visible_media("preceding", tags, 5)
    assert (found[:, 1] + 1).tolist() == [0, 1, 1, 2, 2]
    assert (found[:, 0] > found[:, 1]).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("preceding", [None, (0, 0), (0, 0), (1, 1), (2, 2), (2, 2), (2, 2)]),
        ("all_preceding", [None, (0, 0), (0, 0), (0, 1), (0, 2), (0, 2), (0, 2)]),
        ("next", [(0, 0), (0, 0), (1, 1), (1, 1), (2, 2), None, None]),
        ("run", [None, (0, 0), (0, 0), (1, 1), (1, 2), (1, 2), (1, 2)]),
        ("preceding_in_document", [None, (0, 0), (0, 0), (1, 1), (2, 2), (2, 2), None]),
    ],
)
def test_each_rule_on_one_text(rule, expected):
    """Pictures at 1, 3 and 4; a document ends at 5."""
    found = [tuple(pair) if pair[0] <= pair[1] else None for pair in visible_media(rule, [1, 3, 4], 7, [5]).tolist()]
    assert found == expected
    nothing = visible_media(rule, [], 3)
    assert (nothing[:, 0] > nothing[:, 1]).all()


def test_llamas_run_is_that_of_transformers():
    processing = pytest.importorskip("transformers.models.mllama.processing_mllama")
    draw = np.random.default_rng(0)
    for _ in range(50):
        ids = draw.choice([5, 9], size=12, p=[0.6, 0.4]).tolist()
        places = [i for i, token in enumerate(ids) if token == 9]
        found = visible_media("run", places, len(ids))
        for item, (start, end) in enumerate(processing.get_cross_attention_token_mask(ids, 9)):
            sees = (found[:, 0] <= item) & (item <= found[:, 1])
            end = len(ids) if end == -1 else end
            assert sees.nonzero()[0].tolist() == list(range(start, end))


def test_a_picture_takes_one_position_and_a_conversation_may_have_its_own_rule():
    model = setting("flamingo")
    (sample,) = encoded(model, DOCUMENT)
    image = tokenizer().special["<image>"]
    assert (sample.tokens == image).sum() == 3 == sample.modality.sum()
    before = encoded(model, replace(DOCUMENT, meta={"visibility": "next"}))[0].visible["image"]
    assert before[0].tolist() == [0, 0] and sample.visible["image"][0].tolist() == [0, -1]


def test_items_are_numbered_within_a_packed_row():
    model = setting("flamingo")
    samples = encoded(model, DOCUMENT, TEXT, SHORT)
    visible = collate([samples]).main.visible["image"][0]
    first, second = len(samples[0]), len(samples[0]) + len(samples[1])
    assert visible[:first].max() == 2
    assert (visible[first:second] == torch.tensor([0, -1])).all()
    assert visible[-1].tolist() == [3, 3]


# what it sees, against the definition


def reference_block(block, hidden, media, shows):
    """The gated block of the papers: `shows[row][token]` lists the features that a token sees."""
    attention = block.attention
    d = attention.head_width
    groups = attention.query.out_features // attention.key.out_features
    normed = block.attention_norm(hidden)
    added = torch.zeros_like(hidden)
    fed_to = torch.ones(hidden.shape[:2], dtype=torch.bool)
    for row in range(len(hidden)):
        for token in range(hidden.shape[1]):
            seen = shows[row][token]
            fed_to[row, token] = bool(seen) or block.blind_feed_forward
            if not seen and block.blind_attention:
                seen = list(range(len(media[row])))
            if not seen:
                continue
            features = media[row][seen]
            query, keys, values = attention.query(normed[row, token]), attention.key(features), attention.value(features)
            heads = []
            for head, q in enumerate(query.split(d)):
                here = slice(head // groups * d, (head // groups + 1) * d)
                scores = [float(attention.query_norm(q) @ attention.key_norm(k)) / d**0.5 for k in keys[:, here]]
                weights = np.exp(np.array(scores) - max(scores))
                heads.append(sum(float(w / weights.sum()) * v for w, v in zip(weights, values[:, here], strict=True)))
            added[row, token] = attention.output(torch.cat(heads))
    hidden = hidden + torch.tanh(block.attention_gate) * added
    fed = block.feed_forward(block.feed_forward_norm(hidden))
    return hidden + torch.tanh(block.feed_forward_gate) * fed * fed_to[..., None]


def reference_logits(model, sample):
    """One sample: tags counted in the tokens, blocks run one after another."""
    system, batch = model.system, collate([sample])
    tags = (batch.main.tokens[0] == tokenizer().special["<image>"]).nonzero().flatten().tolist()
    features = system.project(batch, system.encode(batch))["image"] if tags else None
    rule = system.config.fusions[0].visibility
    shows = []
    for token in range(len(sample)):
        before = [number for number, tag in enumerate(tags) if tag <= token]
        seen = before if rule == "all_preceding" else before[-1:]
        while rule == "run" and seen and seen[0] > 0 and tags[seen[0] - 1] == tags[seen[0]] - 1:
            seen = [seen[0] - 1, *seen]
        shows.append([4 * number + latent for number in seen for latent in range(4)])
    language_model = system.language_model
    hidden = system.embed(batch.main.tokens)
    places = torch.arange(len(sample))[None]
    for number, block in enumerate(language_model.blocks):
        if hasattr(block.before_attention, "attention") and tags:
            hidden = reference_block(block.before_attention, hidden, [features.values], [shows])
        elif hasattr(block.before_attention, "attention") and block.before_attention.blind_feed_forward:
            hidden = reference_block(block.before_attention, hidden, [None], [shows])
        bare = TokenSequence(hidden, places, AttentionRule.causal(1, len(sample)), places * 0)
        slot, block.before_attention = block.before_attention, type(block.after_block)()
        final, language_model.final_norm = language_model.final_norm, torch.nn.Identity()
        hidden, _ = language_model(bare, start=number, stop=number + 1)
        block.before_attention, language_model.final_norm = slot, final
    logits = language_model.output(language_model.final_norm(hidden))
    added = F.linear(language_model.final_norm(hidden), system.added_tokens.inputs.weight)
    return torch.cat((logits, added), -1)[0]


@every_form
@torch.no_grad()
def test_logits_are_those_of_the_definition_alone_side_by_side_and_packed(form):
    model = setting(form)
    samples = encoded(model, DOCUMENT, SHORT, TEXT)
    expected = {sample.id: reference_logits(model, sample) for sample in samples}
    aside = form == "llama as in transformers"  # there a blind token sees all of its row, whatever is packed into it
    for rows in (samples, pack(samples, 200)):
        batch = collate(rows)
        if aside and len(batch.main.tokens) < 3:
            continue
        logits = model.system(batch).logits()
        for s in batch.samples:
            assert_close(logits[s.row][batch.main.segment[s.row] == s.segment], expected[s.id])


@every_form
def test_packed_gradients_are_those_of_one_sample_a_row(form):
    model = setting(form)
    if form == "llama as in transformers":
        pytest.skip("a blind token sees all of its row")
    samples, found = encoded(model, DOCUMENT, SHORT, TEXT), []
    for rows in (samples, pack(samples, 200)):
        model.system.zero_grad()
        NextToken(NextToken.Config())(model.system, collate(rows)).mean().backward()
        found.append({n: p.grad for n, p in model.system.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any("before_attention" in name for name in found[0])
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient)


# gates


@every_form
@torch.no_grad()
def test_shut_gates_let_no_picture_through(form):
    model = setting(form, gate=0.0)
    plain = config(form).language_model.build().eval()
    plain.load_state_dict({k: v for k, v in model.system.language_model.state_dict().items() if "before_attention" not in k})
    document, text = (collate(encoded(model, conversation)) for conversation in (DOCUMENT, TEXT))
    for batch in (document, shown(document, item0=5, item2=6), text):
        side = batch.main
        embedded = TokenSequence(model.system.embed(side.tokens), side.positions, side.rule(), side.modality)
        assert torch.equal(model.system(batch).logits()[..., : VOCABULARY - 2], plain.head(plain(embedded)[0]))


@pytest.mark.parametrize("form", ["flamingo", "openflamingo", "idefics"])
@torch.no_grad()
def test_one_block_shows_a_picture_only_to_the_text_from_its_tag_to_the_next(form):
    """With the hidden states held; in the whole model later tokens do change, through self-attention."""
    model = setting(form)
    system = model.system
    batch = collate(encoded(model, DOCUMENT))
    tags = (batch.main.tokens[0] == tokenizer().special["<image>"]).nonzero().flatten().tolist()
    slot = next(b.before_attention for b in system.language_model.blocks if hasattr(b.before_attention, "attention"))
    hidden = torch.randn(1, batch.main.tokens.shape[1], 64, generator=torch.Generator().manual_seed(0))
    one, two = (slot(hidden, system.sequence(b).memory, _context())[0] for b in (batch, shown(batch, item0=7)))
    changed = (one != two).any(-1)[0].nonzero().flatten().tolist()
    assert changed == list(range(tags[0], tags[1]))
    whole = [system(b).logits()[0] for b in (batch, shown(batch, item0=7))]
    assert torch.equal(whole[0][: tags[0]], whole[1][: tags[0]])
    assert (whole[0][tags[2] :] - whole[1][tags[2] :]).abs().max() > 1e-4


def _context():
    from weft.layers.slots import BlockContext

    return BlockContext(rule=None)


@torch.no_grad()
def test_meta_leaves_blind_tokens_alone_and_transformers_does_not():
    for form, alone in (("llama", True), ("llama as in transformers", False)):
        model = setting(form)
        batch = collate(encoded(model, DOCUMENT))
        first = int((batch.main.tokens[0] == tokenizer().special["<image>"]).nonzero()[0])
        one, two = (model.system(b).logits()[0, :first] for b in (batch, shown(batch, item0=7)))
        assert torch.equal(one, two) == alone


# training


@every_form
def test_a_batch_of_text_reaches_every_part_with_zero(form):
    model = setting(form)
    system = model.system
    NextToken(NextToken.Config())(system, collate(encoded(model, TEXT))).mean().backward()
    without = [n for n, p in system.named_parameters() if p.grad is None and "encoder" not in n]
    assert without == []
    assert not any(p.grad.any() for n, p in system.named_parameters() if n.startswith("streams.image.projector"))
    assert not any(p.grad.any() for n, p in system.named_parameters() if "before_attention.attention." in n)


def test_two_rows_move_where_only_the_added_tokens_train():
    system = setting("openflamingo").system
    model = Model(system, setting("openflamingo").processor)
    system.requires_grad_(False)
    system.added_tokens.requires_grad_(True)
    NextToken(NextToken.Config())(system, collate(encoded(model, DOCUMENT))).mean().backward()
    moved = {n: p.grad for n, p in system.named_parameters() if p.grad is not None}
    assert list(moved) == ["added_tokens.inputs.weight"] and moved["added_tokens.inputs.weight"].any(1).all()


# decoding


@every_form
@torch.no_grad()
def test_decoding_behind_a_cache_is_the_full_forward(form):
    """Rows with three pictures, one and none, cut at the prompt; a row that leaves takes its pictures along."""
    model = setting(form)
    samples = encoded(model, DOCUMENT, SHORT, TEXT)
    batch = collate(samples)
    decoding = Decoding(model.system, capacity=4)
    logits = [decoding.prefill(batch)]
    following = torch.randint(3, 250, (3, 4), generator=torch.Generator().manual_seed(2))
    for step in range(2):
        logits.append(decoding.step(following[:, step]))
    decoding.keep([0, 2])
    for step in (2, 3):
        logits.append(decoding.step(following[[0, 2], step]))
    for row, sample in enumerate(samples):
        if row == 1:
            continue
        end = sample.visible["image"][-1:].repeat(4, 0)
        longer = replace(
            sample,
            tokens=np.concatenate((sample.tokens, following[row].numpy())),
            targets=np.concatenate((sample.targets, sample.targets[:4])),
            modality=np.concatenate((sample.modality, np.zeros(4, np.int64))),
            visible={"image": np.concatenate((sample.visible["image"], end))},
        )
        expected = model.system(collate([longer])).logits()[0, len(sample) - 1 :]
        places = [row] * 3 + [row // 2] * 2
        assert_close(torch.stack([step[place] for step, place in zip(logits, places, strict=True)]), expected)


@pytest.mark.parametrize("form", ["flamingo", "llama", "every picture so far"])
def test_a_chat_goes_on_with_the_pictures_of_earlier_turns(form):
    model = setting(form)
    model.processor.stop_ids = frozenset()
    turns = [(picture(1), "which colour"), ("and now?",), (picture(2), picture(3), "again."), ("which",)]
    session, said = ChatSession(model, Sampling(max_new_tokens=5)), []
    for turn in turns:
        said.append(session.ask(*turn))
        grown = said[-1].num_prompt_tokens - said[0].num_prompt_tokens
        assert len(said) == 1 or session.num_tokens_read <= grown, "the first prompt and its picture are not read again"
        history = Conversation(session.conversation.messages[:-1], id="again")
        (again,) = model.generate([history], Sampling(max_new_tokens=5))
        assert again.token_ids == said[-1].token_ids
    other = ChatSession(model, Sampling(max_new_tokens=5))
    replies = [other.ask(*([picture(9), *turn[1:]] if number == 0 else turn)) for number, turn in enumerate(turns)]
    assert [r.token_ids for r in replies] != [r.token_ids for r in said], "the first picture matters"


@pytest.mark.parametrize("form", ["flamingo", "llama"])
def test_choices_that_share_pictures_score_as_each_alone(form):
    model = setting(form)
    asked = Conversation((user(picture(1), "and now? "), assistant("red"), user(picture(2), "which")), id="asked")
    choices = ["red green", "blue", "white white white"]
    together = score_choices(model, asked, choices)
    alone = [score_choices(model, asked, [choice])[0] for choice in choices]
    for one, other in zip(together, alone, strict=True):
        assert one.num_tokens == other.num_tokens
        assert abs(one.log_likelihood - other.log_likelihood) < 1e-4


def test_a_cache_forgets_the_pictures_behind_a_cut():
    model = setting("flamingo")
    samples = encoded(model, DOCUMENT)
    decoding = Decoding(model.system)
    decoding.prefill(collate(samples))
    second = int((samples[0].modality == 1).nonzero()[0][1])
    decoding.cache.crop(second)
    kept = decoding.cache.memory({"image": torch.zeros(1, 1, 2, dtype=torch.long)})["image"]
    assert kept.item.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("form", ["flamingo", "llama"])
def test_a_reduced_precision_trains_and_says_what_is_right(form):
    """bfloat16 keeps 8 bits of a number: logits of size 3 differ by a few hundredths."""
    model = setting(form)
    samples = encoded(model, DOCUMENT, SHORT, TEXT)
    with torch.no_grad():
        exact = Decoding(model.system).prefill(collate(samples))
    with torch.autocast("cpu", torch.bfloat16):
        NextToken(NextToken.Config())(model.system, collate(pack(samples, 200))).mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.system.parameters() if p.grad is not None)
    reduced = model.system.bfloat16()
    decoding = Decoding(reduced)
    batch = collate(samples)
    media = replace(batch.media["image"], units=batch.media["image"].units.bfloat16())
    found = decoding.prefill(replace(batch, media={"image": media}))
    assert (found.float() - exact).abs().max() < 0.15 * exact.abs().max()
    assert torch.isfinite(decoding.step(found.argmax(-1))).all()


# mistakes


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="one stream"):
        CrossAttention.Config(streams=("image", "video"))
    with pytest.raises(ConfigError, match="no block of 2"):
        CrossAttention.Config(every=8, first=7).build().install(Decoder.Config.tiny().build())
    taken = Decoder.Config.tiny().build()
    CrossAttention.Config().build().install(taken)
    with pytest.raises(ConfigError, match="no free slot"):
        CrossAttention.Config().build().install(taken)
    model = setting("flamingo")
    batch = collate(encoded(model, SHORT))
    blind = MultimodalBatch(replace(batch.main, visible={}), batch.media, batch.samples)
    with pytest.raises(MediaTokenMismatch, match="which token sees which"):
        model.system(blind)


def test_the_memory_of_rows_with_unequal_media():
    """Two items of two and one feature in row 1, the second of them again in row 0."""
    from weft.core.media import MediaTokens

    values = torch.arange(3.0)[:, None]
    spans = torch.tensor([[1, 0, 1, 2, 1], [0, 0, 1, 5, 1], [1, 0, 0, 3, 1]])
    memory = beside(MediaTokens(values, torch.tensor([0, 0, 1]), spans), torch.zeros(2, 6, 2, dtype=torch.long))
    assert memory.item.tolist() == [[0, -1, -1], [0, 1, 1]]
    assert memory.values[..., 0].tolist() == [[2, 0, 0], [2, 0, 1]]
    assert memory.place.tolist() == [[3, -1, -1], [2, 5, 5]]
