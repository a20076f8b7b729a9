"""The command line: `weft COMMAND`. Commands live one a file in `commands/` and import what they need when they run."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import typer

from weft import __version__
from weft.core.errors import WeftError
from weft.serving.commands import chat, compare, convert, data, demo, evaluate, list_parts, show, train

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, what a shell expects

# Typer has carried its own copy of click since 0.29; the base of its usage errors is reached through a public name in both.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="weft",
    help="One design space for multimodal large language models: compose, train, measure, chat, exchange.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="WEFT_DEBUG=1 shows where an error came from.",
)
app.command("demo")(demo.demo)
app.command("list")(list_parts.list_parts)
app.command("show")(show.show)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("chat")(chat.chat)
app.command("convert")(convert.convert)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Show the version and leave.", is_eager=True, callback=_print_version
    ),
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. An error that a user can act on becomes one line on stderr."""
    try:
        result = app(args=list(arguments), prog_name="weft", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except SystemExit as stop:
        # Training that was told to stop says where its work is kept.
        if str(stop) not in ("", str(stop.code)):
            _say(str(stop), "yellow")
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    except BrokenPipeError:
        # The reader of our output has left, as `weft list | head -1` does; closing stdout again at exit would fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (WeftError, OSError, MemoryError, RuntimeError, _CommandLineError) as error:
        message = _message(error)
        if message is None or os.environ.get("WEFT_DEBUG") == "1":
            raise
        _say(message, "red")
        return USAGE_ERROR
    if result == INTERRUPTED:
        _say("interrupted", "yellow")
    return result if isinstance(result, int) else 0


def _message(error: BaseException) -> str | None:
    """What a user can act on, or None for an error that is ours."""
    if isinstance(error, WeftError):
        return str(error)
    if isinstance(error, _CommandLineError):
        return error.format_message()  # type: ignore[attr-defined, no-any-return]
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"{where}no space left on the disk; free some or choose another --output"
        return f"{where}{error.strerror or error}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return "out of memory; lower the stage's micro_batch_size or max_tokens, or take a smaller size"
    return None


def _say(message: str, colour: str) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(("weft: ", f"bold {colour}"), (" ".join(message.split()), colour))
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)


def main() -> None:
    """The `weft` script."""
    sys.exit(run(sys.argv[1:]))
