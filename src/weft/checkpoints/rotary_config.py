"""Rotary fields of upstream configs: `rope_theta` and `rope_scaling` of `transformers` 4.x, `rope_parameters` of 5.x."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.core.errors import CheckpointError
from weft.language_models.decoder import Decoder
from weft.layers.rotary import DynamicScaling, LinearScaling, Llama3Scaling, RotaryScaling

_KINDS = "'default', 'linear', 'dynamic' and 'llama3'"


def read_rotary(config: Mapping[str, Any], where: str) -> tuple[float, RotaryScaling | None]:
    """The base and the scaling of a config.

    Raises: CheckpointError for a scaling that Weft does not have.
    """
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(factor=float(rope["factor"]))
    if kind == "dynamic":
        original = int(config["max_position_embeddings"])
        return theta, DynamicScaling(factor=float(rope["factor"]), original_context=original)
    if kind != "llama3":
        raise CheckpointError(f"{where} asks for rotary scaling {kind!r}; Weft has {_KINDS}")
    return theta, Llama3Scaling(
        factor=float(rope["factor"]),
        low_frequency_factor=float(rope["low_freq_factor"]),
        high_frequency_factor=float(rope["high_freq_factor"]),
        original_context=int(rope["original_max_position_embeddings"]),
    )


def write_rotary(config: Decoder.Config) -> dict[str, Any]:
    """The type of a decoder's scaling and its numbers, `rope_type` "default" where there is none.

    Raises: CheckpointError for what these fields cannot say: Qwen's scalings, or a dynamic one that is in use.
    """
    scaling = config.rope_scaling
    if config.log_scaling_context is not None:
        raise CheckpointError("only the Qwen 1 layout holds log_scaling_context; set it to None or write that layout")
    if scaling is None:
        return {"rope_type": "default"}
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, DynamicScaling):
        check_context(config, scaling.original_context)
        return {"rope_type": "dynamic", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    raise CheckpointError(f"this layout has the rotary scalings {_KINDS}, not {scaling.part_name}")


def check_context(config: Decoder.Config, original: int) -> None:
    """Hold a decoder's context to the one from which its scaling starts, the only one that an upstream file states.

    Raises: CheckpointError where they differ.
    """
    if config.context != original:
        raise CheckpointError(
            f"the decoder's context {config.context} is not the {original} from which its scaling starts, and a file "
            f"holds one of them; set context to {original} before writing"
        )
