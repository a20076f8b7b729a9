"""Every template writes the published strings, byte for byte."""

import numpy as np
import pytest

from weft.core.conversation import Conversation, Media, Message, Region, Text, assistant, system, user
from weft.core.errors import ConfigError, DataError
from weft.data.boxes import FractionBoxes
from weft.data.rendering import caption, render
from weft.data.templates import TEMPLATES, template

PICTURE = Media(np.zeros((4, 4, 3), dtype=np.uint8))
TWO_TURNS = Conversation((user(PICTURE, "Q1"), assistant("A1"), user("Q2"), assistant("A2", train=False)))
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAVA_V0 = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the human's questions.###Human: <image>\nQ1###Assistant: A1###Human: Q2###Assistant: A2###"
)
WRITTEN = {
    "llava_v0": LLAVA_V0,
    "llava_v0_tagged": LLAVA_V0.replace("<image>", "<im_start><image><im_end>"),
    "vicuna_v1_tagged": f"{SYSTEM} USER: <im_start><image><im_end>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
    "llava_llama_2": "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
    "<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST] A2 </s>",
    "llava_chatml": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|>"
    "<|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\nA2<|im_end|>",
    "internlm2_chat": "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。<|im_end|>\n<|im_start|>user\n<img><image></img>\nQ1<|im_end|>\n"
    "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>",
    "internlm2_caption": "<img><image></img>A1<|im_end|>A2<|im_end|>",
    "mistral": "[INST] <image>\nQ1 [/INST] A1</s>[INST] Q2 [/INST] A2</s>",
    "cogvlm_caption": "<image>A1</s>A2</s>",
    "cogvlm_base": "<image>Q1A1</s>Q2A2</s>",
    "cogvlm_chat": "<image>[INST] Q1 [/INST] A1</s>[INST] Q2 [/INST] A2</s>",
    "cogvlm_talk": "<image> [INST] Q1 [/INST] A1 [INST] Q2 [/INST] A2</s>",
    "cogvlm_vqa": "<image>Question: Q1 Short answer: A1</s>Question: Q2 Short answer: A2</s>",
    "bare": "<image> Q1 A1 Q2 A2",
    "continued": "<image>Q1 A1Q2 A2",
    "blip_2_opt_caption": "A1\nA2\n",
    "blip_2_opt_photo": "a photo of A1\na photo of A2\n",
    "blip_2_opt": "Question: Q1 Answer: A1\n Question: Q2 Answer: A2\n",
    "blip_2_t5_prefix": "Q1 A1Q2 A2",
    "blip_2_t5_photo": "a photo of A1a photo of A2",
    "blip_2_t5": "Question: Q1 Answer: A1 Question: Q2 Answer: A2",
    "instructblip": "Q1 A1</s>Q2 A2</s>",
    "minigpt_4": "###Human: <Img><image></Img> Q1 ###Assistant: A1######Human: Q2 ###Assistant: A2###",
    "minigpt_4_llama_2": "[INST] <Img><image></Img> Q1 [/INST] A1</s>[INST] Q2 [/INST] A2</s>",
    "minigpt_4_chat": "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it "
    "to you. Please answer my questions.###Human: <Img><image></Img> Q1###Assistant: A1###Human: Q2###Assistant: A2###",
    "flamingo": "<image>Q1 A1<|endofchunk|>Q2 A2<|endofchunk|>",
    "flamingo_pair": "<image>Q1 A1<|endofchunk|>Q2 A2<|endofchunk|><|endoftext|>",
    "idefics": "User: <fake_token_around_image><image><fake_token_around_image>Q1<end_of_utterance>\n"
    "Assistant: A1<end_of_utterance>\nUser: Q2<end_of_utterance>\nAssistant: A2<end_of_utterance>",
    "idefics_base": "<fake_token_around_image><image><fake_token_around_image>Q1 A1Q2 A2",
    "plain": "<image>A1\nA2\n",
    "vicuna_v1": f"{SYSTEM} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
    "llama_3": "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>",
    "llama_3_2_caption": "<image><|begin_of_text|>A1<|end_of_text|>A2<|end_of_text|>",
    "llama_3_2_base": "<image><|begin_of_text|>Q1 A1<|end_of_text|>Q2 A2<|end_of_text|>",
    "llama_3_2": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>Q1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>",
    "chatml": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nQ1<|im_end|>\n"
    "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>",
    "compact": "<|user|><image>Q1<|assistant|> A1<|end|><|user|>Q2<|assistant|> A2<|end|>",
    "qwen_vl_base": "<img><image></img>Q1 A1<|endoftext|>Q2 A2<|endoftext|>",
    "qwen_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img><image></img>\nQ1"
    "<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
    "interleaved": "<image>\nA1A2</s>",
    "idefics_document": "<fake_token_around_image><image><fake_token_around_image>A1A2</s>",
}
PROMPT_END = {
    "llava_v0": "###Human: <image>\nQ1###Assistant:",
    "llava_v0_tagged": "###Human: <im_start><image><im_end>\nQ1###Assistant:",
    "vicuna_v1_tagged": "USER: <im_start><image><im_end>\nQ1 ASSISTANT:",
    "llava_llama_2": "\n<</SYS>>\n\n<image>\nQ1 [/INST]",
    "llava_chatml": "<|im_start|>user\n<image>\nQ1<|im_end|><|im_start|>assistant\n",
    "internlm2_chat": "Q1<|im_end|>\n<|im_start|>assistant\n",
    "internlm2_caption": "<img><image></img>",
    "mistral": "[INST] <image>\nQ1 [/INST]",
    "cogvlm_caption": "<image>",
    "cogvlm_base": "<image>Q1",
    "cogvlm_chat": "<image>[INST] Q1 [/INST]",
    "cogvlm_talk": "<image> [INST] Q1 [/INST] ",
    "cogvlm_vqa": "<image>Question: Q1 Short answer:",
    "bare": "<image> Q1",
    "continued": "<image>Q1",
    "blip_2_opt_caption": "",
    "blip_2_opt_photo": "a photo of",
    "blip_2_opt": "Question: Q1 Answer:",
    "blip_2_t5_prefix": "Q1",
    "blip_2_t5_photo": "a photo of",
    "blip_2_t5": "Question: Q1 Answer:",
    "instructblip": "Q1",
    "minigpt_4": "###Human: <Img><image></Img> Q1 ###Assistant: ",
    "minigpt_4_llama_2": "[INST] <Img><image></Img> Q1 [/INST] ",
    "minigpt_4_chat": "###Human: <Img><image></Img> Q1###Assistant: ",
    "flamingo": "<image>Q1",
    "flamingo_pair": "<image>Q1",
    "idefics": "<image><fake_token_around_image>Q1<end_of_utterance>\nAssistant:",
    "idefics_base": "<image><fake_token_around_image>Q1",
    "plain": "<image>",
    "vicuna_v1": "USER: <image>\nQ1 ASSISTANT:",
    "llama_3": "Q1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama_3_2_caption": "<image><|begin_of_text|>",
    "llama_3_2_base": "<image><|begin_of_text|>Q1",
    "llama_3_2": "<image>Q1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "chatml": "Q1<|im_end|>\n<|im_start|>assistant\n",
    "compact": "<|user|><image>Q1<|assistant|>",
    "qwen_vl_base": "<img><image></img>Q1",
    "qwen_vl": "</img>\nQ1<|im_end|>\n<|im_start|>assistant\n",
    "interleaved": "<image>\n",
    "idefics_document": "<image><fake_token_around_image>",
}


def written(name: str, conversation: Conversation, reply: bool = False, boxes: FractionBoxes | None = None):
    def region(part: Region) -> str:
        return (boxes or FractionBoxes()).render(part.coordinates)

    return render(conversation, template(name), {"image": "<image>"}, region, reply)


def test_every_chat_template_has_a_published_string_here():
    assert set(WRITTEN) == set(PROMPT_END) == {name for name, form in TEMPLATES.items() if not form.caption}


@pytest.mark.parametrize("name", WRITTEN)
def test_two_turns(name):
    assert written(name, TWO_TURNS).text == WRITTEN[name]


def test_a_system_that_says_nothing_leaves_the_users_header_whole():
    silent = Conversation((system(""), *TWO_TURNS.messages))
    assert written("llava_llama_2", silent).text.startswith("[INST] <image>\nQ1 [/INST] A1 </s><s>[INST] Q2")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_prompt_is_the_start_of_the_whole(name):
    prompt = written(name, Conversation(TWO_TURNS.messages[:1]), reply=True)
    assert prompt.text.endswith(PROMPT_END[name])
    assert WRITTEN[name].startswith(prompt.text)
    assert prompt.trained == []


@pytest.mark.parametrize("name", [name for name in WRITTEN if not template(name).learned_opening])
def test_the_answer_and_its_end_are_marked(name):
    rendering = written(name, TWO_TURNS)
    form = template(name)
    assert [rendering.text[start:end] for start, end in rendering.trained] == [form.answer_lead + "A1" + form.answer_end]


def taught(rendering):
    """What is learned in brackets, side by side as one."""
    text = rendering.text
    for start, end in reversed(rendering.trained):
        text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
    return text.replace("][", "")


def test_qwen_vl_learns_the_frames_of_all_turns_and_the_words_of_its_own():
    assert taught(written("qwen_vl", TWO_TURNS)) == (
        "[<|im_start|>]system\nYou are a helpful assistant.[<|im_end|>\n<|im_start|>]user\nPicture 1: <img><image></img>\nQ1"
        "[<|im_end|>\n<|im_start|>]assistant\n[A1<|im_end|>\n<|im_start|>]user\nQ2[<|im_end|>\n<|im_start|>]assistant\n"
        "A2[<|im_end|>\n]"
    )
    nothing = Conversation((user("Q"), assistant("A", train=False)))
    assert written("qwen_vl", nothing).trained == []


def test_pictures_of_a_conversation_are_counted_in_qwen_vl():
    spoken = Conversation((user(PICTURE, PICTURE, "Q"), assistant("A"), user(PICTURE, "R")))
    text = written("qwen_vl", spoken, reply=True).text
    tag = "<img><image></img>"
    assert f"Picture 1: {tag}\nPicture 2: {tag}\nQ<|im_end|>" in text and f"user\nPicture 3: {tag}\nR<|im_end|>" in text


def test_a_document_ends_once_and_its_end_is_learned():
    document = Conversation((user(PICTURE), assistant("A"), user(PICTURE, PICTURE), assistant("B")))
    assert taught(written("interleaved", document)) == "<image>\n[A]<image>\n<image>\n[B</s>]"


def test_a_conversation_may_bring_its_own_system_text_or_none():
    turns = (user("Q"), assistant("A"))
    assert written("vicuna_v1", Conversation((system("Be brief."), *turns))).text == "Be brief. USER: Q ASSISTANT: A</s>"
    assert written("vicuna_v1", Conversation((system(""), *turns))).text == "USER: Q ASSISTANT: A</s>"
    assert written("llama_3", Conversation((system("S"), *turns))).text.startswith(
        "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
    )


@pytest.mark.parametrize(
    "parts", [(PICTURE, "\nQ1"), ("Q1\n", PICTURE), (PICTURE, "Q1")], ids=["image first", "image last", "image alone"]
)
def test_the_image_of_a_turn_moves_to_its_head(parts):
    conversation = Conversation((user(*parts), assistant("A")))
    assert "USER: <image>\nQ1 ASSISTANT:" in written("vicuna_v1", conversation).text


def test_idefics_puts_one_token_between_adjacent_images():
    around = "<fake_token_around_image>"
    text = written("idefics", Conversation((user(PICTURE, PICTURE, "Q", PICTURE), assistant("A")))).text
    assert text.startswith(f"User: {around}<image>{around}<image>{around}Q{around}<image>{around}<end_of_utterance>")


def test_in_the_plain_template_the_instruction_changes_nothing():
    ask = [Conversation((user(PICTURE, question), assistant("A"))) for question in ("Describe.", "What is it?")]
    assert written("plain", ask[0]).text == written("plain", ask[1]).text == "<image>A\n"


def test_regions_are_written_where_they_stand():
    spoken = Conversation((user("What is at ", Region((0.1, 0.2, 0.5, 0.75)), "?"), assistant("A cat.")))
    assert "USER: What is at [0.1, 0.2, 0.5, 0.75]? ASSISTANT: A cat." in written("vicuna_v1", spoken).text


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((), "without messages"),
        ((user("Q"), assistant(PICTURE)), "turn 2 .assistant. holds a medium"),
        ((user("Q"), system("S")), "the system speaks at turn 2"),
        ((Message("user", (PICTURE, Text("Q")), train=True),), "holds a medium"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_sample_named(messages, reason):
    with pytest.raises(DataError, match=f"sample set:9.*{reason}"):
        written("vicuna_v1", Conversation(messages, id="9", source="set"))


def test_no_reply_to_the_assistant_itself():
    with pytest.raises(DataError, match="the assistant spoke last"):
        written("chatml", TWO_TURNS, reply=True)


def test_a_caption_is_what_the_assistant_says_or_else_the_user():
    assert caption(Conversation((user(PICTURE, "Describe."), assistant(" a cat ")))) == "a cat"
    assert caption(Conversation((user(PICTURE, "a dog"),))) == "a dog"
    with pytest.raises(DataError, match="holds no text"):
        caption(Conversation((user(PICTURE),)))


def test_an_unknown_template_is_met_with_the_nearest_names():
    with pytest.raises(ConfigError, match="did you mean 'vicuna_v1'"):
        template("vicuna")
