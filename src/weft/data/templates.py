"""How a conversation is written as text for a language model. A template is data; `TEMPLATES` holds the published ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from weft.core.errors import unknown_name


@dataclass(frozen=True, kw_only=True)
class Template:
    """The strings around the parts of a conversation.

    A turn is header, content, footer; turns are joined by `between`. `answer_lead` and `answer_end` stand around an assistant's
    content and are learned with it; a generation prompt ends with `assistant_header`. `caption` templates write the text of all
    turns and nothing else, between the tokenizer's begin and end tokens, for systems that compare it with media; they train no
    token unless the caption is `learned`.
    """

    name: str
    begin: str = ""  # before the text and behind the media that it starts with, instead of what the tokenizer puts there
    system: str = ""  # said where a conversation says nothing; no text, no system turn
    system_header: str = ""
    system_footer: str = ""
    user_header: str = ""
    user_header_after_system: str | None = None  # where another than the usual one stands behind the system's words
    user_header_after_answer: str | None = None  # and behind an answer
    user_footer: str = ""
    assistant_header: str = ""
    answer_lead: str = ""
    answer_end: str = ""
    between: str = ""
    end: str = ""  # behind the last turn, learned with its answer
    learned_opening: str = ""  # the start of every header; where set it is learned, and what follows every turn, whoever speaks
    media_first: bool = True  # media of a turn move to its head, each within header and footer, and its text is stripped
    media_header: str = ""  # "{number}" in it counts the conversation's media from 1
    media_footer: str = "\n"
    media_around: str = ""  # without `media_first`: before and behind every medium, once between adjacent ones
    media_before_turn: bool = False  # with `media_first`: they stand before the turn's header
    media_before_begin: bool = False  # with `media_first`: all media stand before the text, even before its begin token
    user_text: bool = True  # False: only the media of user turns are written
    caption: bool = False
    learned: bool = False  # captions only: every token but the first is a target
    answer_apart: bool = False  # answers are encoded by themselves, not in one text with what stands before
    answer_divided: bool = False  # the first words of an answer are what an encoder reads, instead of a question
    spelled_end: bool = False  # what ends an answer is ordinary text of several tokens
    pad_to_context: bool = False  # captions only: filled with real padding tokens, which the text tower reads

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a reply."""
        return tuple(filter(None, (self.answer_end or self.end,)))


_QUERIES: dict[str, Any] = {"media_before_begin": True, "media_footer": ""}
_QUESTION: dict[str, Any] = {
    "user_header": "Question: ", "assistant_header": "Answer:", "answer_lead": " ", "between": " "
}  # fmt: skip

_CHATML: dict[str, Any] = {
    "system_header": "<|im_start|>system\n",
    "system_footer": "<|im_end|>",
    "user_header": "<|im_start|>user\n",
    "user_footer": "<|im_end|>",
    "assistant_header": "<|im_start|>assistant\n",
    "answer_end": "<|im_end|>",
    "between": "\n",
}
_LLAMA_3: dict[str, Any] = {
    "system_header": "<|start_header_id|>system<|end_header_id|>\n\n",
    "system_footer": "<|eot_id|>",
    "user_header": "<|start_header_id|>user<|end_header_id|>\n\n",
    "user_footer": "<|eot_id|>",
    "assistant_header": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "answer_end": "<|eot_id|>",
}

# LLaVA (arXiv:2304.08485, 2310.03744) on Vicuna v0, on Vicuna v1 and later, on LLaMA-2-chat, and the 34B model of 1.6
_LLAVA_V0 = Template(
    name="llava_v0",
    system="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    system_footer="###",
    user_header="Human: ",
    user_footer="###",
    assistant_header="Assistant:",
    answer_lead=" ",
    answer_end="###",
    spelled_end=True,
)
_VICUNA_V1 = Template(
    name="vicuna_v1",
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    system_footer=" ",
    user_header="USER: ",
    user_footer=" ",
    assistant_header="ASSISTANT:",
    answer_lead=" ",
    answer_end="</s>",
)
_LLAVA_LLAMA_2 = Template(
    name="llava_llama_2",
    system="You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.",
    system_header="[INST] <<SYS>>\n",
    system_footer="\n<</SYS>>\n\n",
    user_header="[INST] ",
    user_header_after_system="",
    user_header_after_answer="<s>[INST] ",
    user_footer=" [/INST]",
    answer_lead=" ",
    answer_end=" </s>",
    spelled_end=True,  # the space before it is a token too
)
_LLAVA_CHATML = Template(name="llava_chatml", system="Answer the questions.", **{**_CHATML, "between": ""})
_LLAVA = (_LLAVA_V0, _VICUNA_V1, _LLAVA_LLAMA_2, _LLAVA_CHATML)
# the same for models that were taught two tokens around every picture
_LLAVA_TAGGED = tuple(
    replace(each, name=f"{each.name}_tagged", media_header="<im_start>", media_footer="<im_end>\n")
    for each in (_LLAVA_V0, _VICUNA_V1)
)

_TEMPLATES = (
    *_LLAVA,
    *_LLAVA_TAGGED,
    # LLaVA stage 1 (arXiv:2304.08485): the instruction is dropped, the caption and its line end are learned
    Template(name="plain", answer_end="\n", media_footer="", user_text=False),
    # Llama 3 (arXiv:2407.21783); the tokenizer puts <|begin_of_text|> in front
    Template(name="llama_3", **_LLAMA_3),
    # Llama 3.2 Vision: captions, what goes on from words, dialogues. Pictures at the very front stand before the begin token
    Template(
        name="llama_3_2_caption",
        begin="<|begin_of_text|>",
        answer_end="<|end_of_text|>",
        media_before_turn=True,
        media_footer="",
        user_text=False,
    ),
    Template(
        name="llama_3_2_base",
        begin="<|begin_of_text|>",
        answer_lead=" ",
        answer_end="<|end_of_text|>",
        media_before_turn=True,
        media_footer="",
    ),
    Template(
        name="llama_3_2",
        begin="<|begin_of_text|>",
        media_first=False,
        media_footer="",
        **_LLAMA_3,
    ),
    # ChatML, Qwen
    Template(
        name="chatml",
        system="You are a helpful assistant.",
        **_CHATML,
    ),
    # Qwen-VL (arXiv:2308.12966): pairs and tasks of its pre-training, then dialogues, whose frames are learned too
    Template(name="qwen_vl_base", answer_lead=" ", answer_end="<|endoftext|>", media_header="<img>", media_footer="</img>"),
    Template(
        name="qwen_vl",
        system="You are a helpful assistant.",
        **_CHATML,
        end="\n",
        learned_opening="<|im_start|>",
        media_header="Picture {number}: <img>",
        media_footer="</img>\n",
    ),
    # VILA's pre-training (arXiv:2312.07533): a document, texts in the assistant's turns between the pictures of the user's
    Template(name="interleaved", end="</s>", user_text=False),
    # IDEFICS's pre-training (arXiv:2306.16527): such documents, whose pictures have no line of their own
    Template(
        name="idefics_document",
        end="</s>",
        user_text=False,
        media_first=False,
        media_around="<fake_token_around_image>",
        media_footer="",
        answer_apart=True,
    ),
    # Mistral-Instruct (arXiv:2310.06825), with pictures as LLaVA-NeXT writes them; the tokenizer puts <s> in front
    Template(name="mistral", user_header="[INST] ", user_footer=" [/INST]", answer_lead=" ", answer_end="</s>"),
    # Mono-InternVL (arXiv:2410.08202); the tokenizer puts <s> in front
    Template(
        name="internlm2_chat",
        system="你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
        **_CHATML,
        media_header="<img>",
        media_footer="</img>\n",
    ),
    # the same without words around a caption
    Template(name="internlm2_caption", answer_end="<|im_end|>", media_header="<img>", media_footer="</img>", user_text=False),
    # CogVLM (arXiv:2311.03079): captions; the query alone; the one that talks; the one that answers shortly
    Template(name="cogvlm_caption", answer_end="</s>", media_footer="", user_text=False),
    Template(name="cogvlm_base", answer_end="</s>", media_footer=""),
    Template(
        name="cogvlm_chat",
        user_header="[INST] ",
        user_footer=" [/INST]",
        answer_lead=" ",  # so that it is one token with the word behind it, trained and asked for
        answer_end="</s>",
        media_footer="",
        media_before_turn=True,
    ),
    # the published one that talks: the space before an answer is a token by itself, and no token ends an earlier answer
    Template(
        name="cogvlm_talk",
        user_header=" [INST] ",
        user_footer=" [/INST] ",
        end="</s>",
        media_footer="",
        media_before_turn=True,
        answer_apart=True,
    ),
    Template(
        name="cogvlm_vqa",
        user_header="Question: ",
        user_footer=" Short answer:",
        answer_lead=" ",
        answer_end="</s>",
        media_footer="",
        media_before_turn=True,
    ),
    # one token a turn for small models with a tokenizer of their own
    Template(
        name="compact",
        user_header="<|user|>",
        assistant_header="<|assistant|>",
        answer_lead=" ",  # so that a word has one token, wherever it stands
        answer_end="<|end|>",
        media_footer="",
    ),
    # Flamingo (arXiv:2204.14198), in OpenFlamingo's spelling (arXiv:2308.01390): chunks of text behind their pictures. Flamingo
    # puts a space before half of its texts; here before all, so that a word has one token, wherever it stands
    Template(name="flamingo", answer_lead=" ", answer_end="<|endofchunk|>", media_first=False, media_footer=""),
    # a picture with its caption, behind which both write that the text is over, and teach it
    Template(
        name="flamingo_pair",
        answer_lead=" ",
        answer_end="<|endofchunk|>",
        end="<|endoftext|>",
        media_first=False,
        media_footer="",
    ),
    # IDEFICS (arXiv:2306.16527), as instructed
    Template(
        name="idefics",
        user_header="User: ",
        user_footer="<end_of_utterance>",
        assistant_header="Assistant:",
        answer_lead=" ",
        answer_end="<end_of_utterance>",
        between="\n",
        media_first=False,
        media_around="<fake_token_around_image>",
        media_footer="",
    ),
    # the same before it was instructed: documents go on
    Template(
        name="idefics_base",
        answer_lead=" ",
        media_first=False,
        media_around="<fake_token_around_image>",
        media_footer="",
    ),
    # the words as they are, for language models that go on with a text
    Template(name="continued", answer_lead=" ", media_footer=""),
    # the words as they are, as Flan-T5 (arXiv:2210.11416) is asked
    Template(name="bare", user_header=" ", answer_lead=" ", media_before_turn=True, media_footer=""),
    # BLIP-2 (arXiv:2301.12597) puts its queries before all text. On OPT: captions, captions as fine-tuned, questions
    Template(name="blip_2_opt_caption", answer_end="\n", user_text=False, **_QUERIES),
    Template(
        name="blip_2_opt_photo", assistant_header="a photo of", answer_lead=" ", answer_end="\n", user_text=False, **_QUERIES
    ),
    Template(name="blip_2_opt", answer_end="\n", **_QUESTION, **_QUERIES),
    # On Flan-T5, where the tokenizer ends what the encoder reads and what the decoder writes: the same three
    Template(name="blip_2_t5_prefix", answer_lead=" ", answer_divided=True, **_QUERIES),
    Template(name="blip_2_t5_photo", assistant_header="a photo of", answer_lead=" ", user_text=False, **_QUERIES),
    Template(name="blip_2_t5", **_QUESTION, **_QUERIES),
    # InstructBLIP (arXiv:2305.06500): the instruction as it is
    Template(name="instructblip", answer_lead=" ", answer_end="</s>", **_QUERIES),
    # MiniGPT-4 (arXiv:2304.10592), as it is tuned and as it is talked to
    Template(
        name="minigpt_4",
        user_header="###Human: ",
        user_footer=" ",
        assistant_header="###Assistant: ",
        answer_end="###",
        media_header="<Img>",
        media_footer="</Img> ",
        answer_apart=True,
        spelled_end=True,
    ),
    # the same on LLaMA-2-chat, as it is tuned
    Template(
        name="minigpt_4_llama_2",
        user_header="[INST] ",
        user_footer=" [/INST] ",
        answer_end="</s>",
        media_header="<Img>",
        media_footer="</Img> ",
        answer_apart=True,
    ),
    Template(
        name="minigpt_4_chat",
        system="Give the following image: <Img>ImageContent</Img>. "
        "You will be able to see the image once I provide it to you. Please answer my questions.",
        system_footer="###",
        user_header="Human: ",
        user_footer="###",
        assistant_header="Assistant: ",
        answer_end="###",
        media_header="<Img>",
        media_footer="</Img> ",
        answer_apart=True,  # a prompt ends with a space; the released chat joins it to the answers that were given before
        spelled_end=True,
    ),
    # CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343)
    Template(name="clip_text", caption=True),
    Template(name="siglip_text", caption=True, pad_to_context=True),
    # BLIP-2's first stage (arXiv:2301.12597): the caption is compared, matched and written
    Template(name="blip_2_caption", caption=True, learned=True),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _TEMPLATES}
"""Every template by name."""


def template(name: str) -> Template:
    """The template of a name. Raises: ConfigError that offers the nearest names."""
    if name not in TEMPLATES:
        raise unknown_name("template", name, TEMPLATES)
    return TEMPLATES[name]
