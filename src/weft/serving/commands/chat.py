"""`weft chat`: talk to a model about pictures, recordings and films."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.serving.options import Device, ModelPath, Parts


def chat(
    model: ModelPath,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "-i", help="A picture for the first question; repeatable.", show_default=False),
    ] = None,
    audio: Annotated[
        list[str] | None,
        typer.Option("--audio", "-a", help="A recording for the first question; repeatable.", show_default=False),
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option("--video", "-v", help="A film for the first question; repeatable.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask this, print the answer, and leave.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="A system prompt in place of the template's.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens of this probability together.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes draws repeatable.", show_default=False)] = None,
    device: Device = "auto",
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, bf16 or fp16.", show_default="as it is")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of a hub name.", show_default=False)] = None,
    parts: Parts = None,
) -> None:
    """Talk to a model. Without --prompt it is a conversation: /help lists what it understands."""
    from rich.console import Console

    from weft.core.errors import ConfigError
    from weft.inference.chat import ChatSession
    from weft.inference.sampling import Sampling
    from weft.recipes.loading import load_model
    from weft.recipes.starting_weights import assigned
    from weft.serving.chat_loop import ChatLoop, check_medium
    from weft.serving.device import chosen_device
    from weft.serving.precision import chosen_precision

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    given = [(path, stream) for stream, paths in (("image", image), ("audio", audio), ("video", video)) for path in paths or ()]
    for path, stream in given:
        check_medium(path, stream)  # a wrong file is told before a model is loaded
    loaded = load_model(model, chosen_device(device), chosen_precision(precision), revision, assigned(parts or ()))
    known = loaded.processor.config.transforms
    for stream in dict.fromkeys(stream for _, stream in given):
        if stream not in known:
            raise ConfigError(f"{model} takes no {stream}, only {', '.join(sorted(known)) or 'text'}; leave --{stream} out")
    console = Console(highlight=False)
    loop = ChatLoop(ChatSession(loaded, sampling, system), console, console.input)
    for path, stream in given:
        loop.show(path, stream)
    if prompt is not None:
        loop.answer(prompt)
    else:
        loop.run()
