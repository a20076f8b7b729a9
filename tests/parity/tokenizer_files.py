"""Tokenizers of the kinds that published models have, tiny and trained here, as `transformers` writes them."""

import io
import json
from pathlib import Path

from weft.data.tokenizers import Tokenizer

LINES = (
    "what is in the image? a red cat on a mat, and 42",
    "Question: how many cats are there? Answer: two",
    "naïve façade, 你好, это кот",
)


def write_opt_tokenizer(folder: Path) -> None:
    """OPT's: GPT-2's kind, with `</s>` before every text."""
    import transformers

    backend = Tokenizer.train(LINES * 5, 340, ("<s>", "<pad>", "</s>", "<unk>"), begin="</s>").backend
    model = json.loads(backend.to_str())["model"]
    transformers.GPT2Tokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], bos_token="</s>", eos_token="</s>",
        unk_token="</s>", pad_token="<pad>", add_bos_token=True,
    ).save_pretrained(folder)  # fmt: skip


def write_t5_tokenizer(folder: Path) -> None:
    """T5's: SentencePiece with padding, end and unknown first, and `</s>` behind every text."""
    import transformers

    _train(folder, "spiece.model", model_type="unigram", vocab_size=120, bos_id=-1, pad_id=0, eos_id=1, unk_id=2)
    _settings(folder, "T5Tokenizer", extra_ids=0)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def write_llama_tokenizer(folder: Path, begin: str = "</s>") -> None:
    """Vicuna's as InstructBLIP has it: `</s>` before every text, and a padding token behind the vocabulary."""
    import transformers

    _train(
        folder, "tokenizer.model", model_type="bpe", vocab_size=360, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, character_coverage=0.995,
    )  # fmt: skip
    _settings(folder, "LlamaTokenizer", add_bos_token=True, add_eos_token=False)
    tokenizer = transformers.LlamaTokenizerFast.from_pretrained(
        folder, bos_token=begin, unk_token="</s>", truncation_side="left"
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


def write_reader_tokenizer(folder: Path) -> None:
    """That of a Q-Former: BERT's, with the token that BLIP-2 puts before captions."""
    import transformers

    letters = sorted({letter for line in LINES for letter in line.lower() if not letter.isspace()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, truncation_side="left")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.save_pretrained(folder)


def _train(folder: Path, file: str, **options: object) -> None:
    import sentencepiece

    model = io.BytesIO()
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=model, minloglevel=3, hard_vocab_limit=False, **options
    )
    (folder / file).write_bytes(model.getvalue())


def _settings(folder: Path, kind: str, **more: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **more}))
