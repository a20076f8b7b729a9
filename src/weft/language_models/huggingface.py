"""Any other causal language model: a wrapper around the classes of the `transformers` library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.cache import Cache
from weft.core.catalogue import parts
from weft.core.errors import AttentionError, CheckpointError, ConfigError, MissingLibrary, unknown_name
from weft.core.interfaces import LanguageModel
from weft.core.sequence import TokenSequence
from weft.layers.kernels import attend
from weft.layers.precision import working_precision

ATTENTION = "weft"  # the name under which the library finds Weft's attention
_SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "context": "max_position_embeddings",
}
_NOT_THE_MODEL = ("model_type", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path")
# What some families do to the logits behind the output layer, which `head` is.
_BEHIND_THE_HEAD = ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_multiplier")
# What a family may ask of attention that a rule does not say.
_BESIDE_THE_RULE = ("softcap", "s_aux", "position_bias", "alibi", "head_mask")


class HFWrapper(LanguageModel):
    """A causal language model of `transformers` that attends by Weft's rule and cache; media reach it as tokens only.

    The library's attention interface is given a function that knows the rule, so packing, prefixes and caches hold as in Weft's
    own models. Its blocks have no slots. Dropout is left out, as in Weft's own models. No code outside the library is run.

    Shapes: embeddings [B, T, D] -> hidden [B, T, D]; head [.., D] -> [.., V].
    Raises: MissingLibrary where `transformers` is not installed; ConfigError for a family whose tokens meet elsewhere than in
    the attention interface, or whose logits are changed behind its output layer.
    Source: Transformers, arXiv:1910.03771.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageModel.Config):
        """`family` is the library's `model_type`; `settings` are the other fields of its config, as JSON."""

        family: str = "gpt2"
        vocabulary: int = 50_257
        width: int = 768
        num_layers: int = 12
        context: int = 1024
        settings: str = "{}"

        def build(self) -> HFWrapper:
            return HFWrapper(self)

        @property
        def output_width(self) -> int:
            return self.width

        @classmethod
        def read(cls, saved: Mapping[str, Any]) -> Self:
            """The config of a published `config.json`.

            Raises: ConfigError for a family that the library does not have.
            """
            family = str(saved.get("model_type"))
            rest = {name: value for name, value in saved.items() if name not in _NOT_THE_MODEL}
            theirs = _library_config(family, rest)
            spelled = {_spelling(theirs, name) for name in _SIZES.values()} | set(_SIZES.values())
            settings = {name: value for name, value in rest.items() if name not in spelled}
            if lacking := [name for name in _SIZES.values() if not hasattr(theirs, name)]:
                raise ConfigError(
                    f"{family} of transformers states no {', '.join(lacking)}: no language model alone; use another"
                )
            sizes = {ours: getattr(theirs, name) for ours, name in _SIZES.items()}
            return cls(family=family, settings=json.dumps(settings, sort_keys=True), **sizes)

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, width=32, num_layers=2, context=256, settings='{"n_head": 4}')

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {"gpt2": cls()}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = _attending(config)
        self.blocks = nn.ModuleList(_Closed(config.family) for _ in range(config.num_layers))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """A published model: a folder with `config.json` and safetensors, read by the library.

        Raises: CheckpointError for a folder without them, and for keys that are missing, unknown or misshapen.
        """
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} holds no config.json; expected a folder in transformers layout")
        with torch.device("meta"):
            made = cls(cls.Config.read(json.loads((path / "config.json").read_text(encoding="utf-8"))))
        try:
            made.model, info = _library().AutoModelForCausalLM.from_pretrained(
                path, config=made.model.config, attn_implementation=ATTENTION, trust_remote_code=False, use_safetensors=True,
                local_files_only=True, output_loading_info=True,
            )  # fmt: skip
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: {str(error).splitlines()[0]}") from error
        if wrong := [f"{kind.replace('_', ' ')}: {sorted(map(str, keys))}" for kind, keys in info.items() if keys]:
            raise CheckpointError(f"{path} does not fit {made.config.family}; {'; '.join(wrong)}")
        return made.eval()

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(tokens)

    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        if start != 0 or stop not in (None, len(self.blocks)):
            raise ConfigError(f"{self.config.family} of transformers runs whole, not from block {start} to {stop}")
        if sequence.rule.score_bias is not None:
            raise ConfigError(f"{self.config.family} of transformers takes no score bias beside the rule")
        run = _Run(self.config.family, sequence.rule, cache)
        hidden = self.model.base_model(
            inputs_embeds=working_precision(sequence.embeddings),
            position_ids=sequence.positions,
            use_cache=False,
            **{ATTENTION: run},
        ).last_hidden_state
        if len(run.layers) != len(self.blocks):
            raise ConfigError(
                f"the rule reached {len(run.layers)} of {len(self.blocks)} blocks of {self.config.family}; the others mix "
                "tokens without the attention interface of transformers, so packing would not hold; use another family"
            )
        return hidden, sequence.memory

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)


@dataclass
class _Run:
    """What the attention of one forward asks: the rule, in the windows that layers want, the cache, and who has asked."""

    family: str
    rule: AttentionRule
    cache: Cache | None
    layers: set[int] = field(default_factory=set)
    windowed: dict[int, AttentionRule] = field(default_factory=dict)

    def rule_of(self, window: int | None) -> AttentionRule:
        if window is None:
            return self.rule
        if window not in self.windowed:
            self.windowed[window] = self.rule.with_window(window)
        return self.windowed[window]


class _Closed(nn.Module):
    """Stands for a block of the library, which no fusion can enter."""

    _NAMES = (*LanguageModel.slots, "attention", "feed_forward", "attention_norm", "feed_forward_norm", "routes")

    def __init__(self, family: str) -> None:
        super().__init__()
        self.family = family

    def __getattr__(self, name: str) -> Any:
        self._refuse(name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse(name)
        super().__setattr__(name, value)

    def _refuse(self, name: str) -> None:
        if name in self._NAMES:
            able = [key for key, part in parts("language_models").items() if getattr(part, "slots", ())]
            raise ConfigError(
                f"a fusion needs {name!r} of a block, and {self.family} of transformers has no slots "
                f"({', '.join(LanguageModel.slots)}); use token_concatenation, or one of {', '.join(able)}"
            )


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **asked: Any
) -> tuple[Tensor, None]:
    """The library's attention, by Weft's kernels. Shapes: query, key, value [B, H, T, d] -> [B, T, H, d]."""
    run: _Run | None = asked.get(ATTENTION)
    if run is None:
        raise ConfigError("a family of transformers that does not hand its arguments on to attention cannot be wrapped")
    beside = [name for name in _BESIDE_THE_RULE if asked.get(name) is not None]
    if beside or attention_mask is not None or value.shape[-1] != query.shape[-1]:
        beside = beside or (["a mask of its own"] if attention_mask is not None else ["values of another width"])
        raise AttentionError(f"attention of {run.family} asks for {', '.join(beside)}, which Weft's kernels do not have")
    layer: Any = module.layer_idx
    run.layers.add(layer)
    if run.cache is not None:
        key, value = run.cache.append(layer, key, value)
    scaling = asked.get("scaling")
    if scaling is not None:
        ratio = scaling * math.sqrt(query.shape[-1])
        query = query if math.isclose(ratio, 1.0) else query * ratio
    return attend(query, key, value, run.rule_of(asked.get("sliding_window"))).transpose(1, 2), None


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingLibrary("a language model of another family", "transformers", "hf") from error
    return transformers


def _library_config(family: str, fields: Mapping[str, Any]) -> Any:
    """The library's config of a family. Raises: ConfigError for an unknown one, and for fields that it does not take."""
    library = _library()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise unknown_name("family of causal language models in transformers", family, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    cls = library.CONFIG_MAPPING[family]
    # the tokens that begin, end and fill a text are the tokenizer's; the library would hold them to the vocabulary
    plain = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    spelled = {_spelling(cls, name): value for name, value in fields.items()}
    try:
        return cls(**{**spelled, **plain})
    except Exception as error:  # each family checks its fields with errors of its own
        raise ConfigError(f"transformers takes no such config of {family}: {str(error).splitlines()[-1].strip()}") from error


def _spelling(config: Any, name: str) -> str:
    """How a family spells one of the library's common names: GPT-2's `hidden_size` is `n_embd`."""
    return str(config.attribute_map.get(name, name))


def _attending(c: HFWrapper.Config) -> Any:
    """The library's model with random weights, attending by `_attention`."""
    library = _library()
    sizes = {theirs: getattr(c, ours) for ours, theirs in _SIZES.items()}
    config = _library_config(c.family, {**json.loads(c.settings), **sizes})
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    if changed := [name for name in _BEHIND_THE_HEAD if getattr(config, name, None) not in (None, 1)]:
        raise ConfigError(f"{c.family} changes its logits behind the output layer ({', '.join(changed)}), which Weft does not")
    model_class = library.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not model_class._supports_attention_backend or model_class._is_stateful:
        raise ConfigError(
            f"{model_class.__name__} does not attend through the attention interface of transformers, so that packing would "
            "not hold; use another family"
        )
    library.AttentionInterface.register(ATTENTION, _attention)  # no mask function of that name: no mask is made
    model = library.AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)
    table, others = model.get_input_embeddings().weight.shape, [m for m in model.children() if m is not model.base_model]
    if tuple(table) != (c.vocabulary, c.width) or others != [model.get_output_embeddings()]:
        raise ConfigError(
            f"{model_class.__name__} is not one stack of blocks with one table of {c.vocabulary} times {c.width} before it and "
            "one output layer behind it, all that Weft's interface knows; use another family"
        )
    return model
