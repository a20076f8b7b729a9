"""Configs: frozen dataclasses that build what they describe and that are saved as JSON with a schema version.

Source of the saved form: one JSON object per config, `{"type": "<module>.<class>", <field>: <value>, ...}`; the outermost
object also carries `"schema"`. Reading a config never runs code from the file: a type is looked up among Weft's own modules
and the modules that the running program has already imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from weft.core.errors import ConfigError

SCHEMA_VERSION = 1
_SHOWN = 80  # characters of a wrong value


class Config:
    """Base of every config. Subclasses are frozen keyword-only dataclasses with a `build` method.

    Derived sizes (an encoder's width, a language model's width) are arguments of `build`, never fields.
    """

    _known: ClassVar[dict[str, type[Config]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Config._known[f"{cls.__module__}.{cls.__qualname__}"] = cls

    @classmethod
    def tiny(cls) -> Self:
        """The smallest useful instance; contract tests run over it."""
        return cls()

    @property
    def part_name(self) -> str:
        """The name of the class that this config builds, for errors and lists."""
        return type(self).__qualname__.removesuffix(".Config")


def to_dict(config: Any) -> Any:
    """The JSON form of a config or of a value inside one."""
    if isinstance(config, Config):
        assert dataclasses.is_dataclass(config)
        fields = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": f"{type(config).__module__}.{type(config).__qualname__}", **fields}
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(v) for v in config]
    if config is None or isinstance(config, str | int | float | bool):
        return config
    raise ConfigError(f"a config holds values, not a {type(config).__name__}: {config!r}")


def from_dict(saved: Any) -> Any:
    """The config that `to_dict` wrote.

    Raises: ConfigError for an unknown type or field.
    """
    if isinstance(saved, list):
        return tuple(from_dict(v) for v in saved)
    if not isinstance(saved, dict):
        return saved
    if "type" not in saved:
        return {k: from_dict(v) for k, v in saved.items()}
    cls = _find_type(str(saved["type"]))
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fields = {k: v for k, v in saved.items() if k not in ("type", "schema")}
    if unknown := sorted(set(fields) - known):
        raise ConfigError(f"{saved['type']} has no field {', '.join(unknown)}; it was written by another version of Weft")
    values = {k: from_dict(v) for k, v in fields.items()}
    hints = typing.get_type_hints(cls)
    if wrong := [name for name, value in values.items() if not _fits(value, hints[name])]:
        said = ", ".join(f"{name}={fields[name]!r}"[:_SHOWN] for name in wrong)
        raise ConfigError(f"{saved['type']} cannot hold {said}; the file was changed or damaged")
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}  # type: ignore[arg-type]
    if missing := sorted(required - set(values)):
        raise ConfigError(f"{saved['type']} lacks {', '.join(missing)}; the file was changed or damaged")
    return cls(**values)


def dumps(config: Config) -> str:
    """A config as JSON text with its schema version."""
    return json.dumps({"schema": SCHEMA_VERSION, **to_dict(config)}, indent=2, ensure_ascii=False) + "\n"


def loads(text: str, where: str = "config") -> Any:
    """A config from JSON text; `where` names the file in errors."""
    try:
        saved = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    schema = saved.get("schema") if isinstance(saved, dict) else None
    if schema != SCHEMA_VERSION:
        raise ConfigError(f"{where} has schema {schema!r}; this version of Weft reads schema {SCHEMA_VERSION}")
    try:
        return from_dict(saved)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value may stand in a field. What containers hold is left to whoever uses it, but for plain tuples."""
    options = typing.get_args(hint)
    origin = typing.get_origin(hint) or hint
    if origin is typing.Union or origin is types.UnionType:
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    if origin is tuple and options:
        every = options[:1] * len(value) if options[1:] == (...,) and isinstance(value, tuple) else options
        return isinstance(value, tuple) and len(value) == len(every) and all(map(_fits, value, every))
    if hint is Any or not isinstance(origin, type):
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if origin in (int, float):
        return number and (origin is float or isinstance(value, int))
    return isinstance(value, origin)


def _find_type(name: str) -> type[Config]:
    if name not in Config._known and name.startswith("weft."):
        module = name
        while "." in module:
            module = module.rpartition(".")[0]
            try:
                importlib.import_module(module)
                break
            except ModuleNotFoundError:
                continue
    if name not in Config._known:
        raise ConfigError(f"config type {name!r} is not known; import the module that defines it first")
    return Config._known[name]


def override(config: Any, path: str, value: str) -> Any:
    """A copy of `config` with the field at a dotted `path` set from text, as `--set stages.align.steps=200` does.

    A path goes through fields, dictionary keys, list indices and the `name` of list members.

    Raises: ConfigError naming the nearest fields, or the type that was expected.
    """
    return override_all(config, [(path, value)])


def override_all(config: Any, settings: Iterable[tuple[str, str]]) -> Any:
    """A copy with every (path, value) set at once, so that fields which only fit together change together.

    Of two values for one path the later holds. Raises: ConfigError, as `override`.
    """
    return _replaced(config, [_Setting(path.split("."), value, path) for path, value in settings], Any)


class _Setting(typing.NamedTuple):
    steps: list[str]  # what is left of the path
    value: str
    path: str


def _replaced(node: Any, settings: list[_Setting], hint: Any) -> Any:
    if not settings:
        return node
    ends = [setting for setting in settings if not setting.steps]
    if ends:
        if len(ends) < len(settings):
            raise ConfigError(f"{ends[0].path!r} is set as a whole and in part; leave one out")
        return _parse(ends[-1].value, hint, ends[-1].path)
    within: dict[Any, list[_Setting]] = {}
    for steps, value, path in settings:
        within.setdefault(_key(node, steps, path), []).append(_Setting(steps[1:], value, path))
    if isinstance(node, Mapping):
        return {key: _replaced(member, within.get(key, []), _kind(member)) for key, member in node.items()}
    if isinstance(node, tuple | list):
        return tuple(_replaced(member, within.get(index, []), _kind(member)) for index, member in enumerate(node))
    hints = typing.get_type_hints(type(node))
    new = {name: _replaced(getattr(node, name), inside, hints.get(name, Any)) for name, inside in within.items()}
    return dataclasses.replace(node, **new)


def _key(node: Any, steps: list[str], path: str) -> Any:
    """Which member of a node the next step names: a field, a dictionary's key or a list's index."""
    step = steps[0]
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [f.name for f in dataclasses.fields(node) if f.init]
        owner = type(node).__qualname__
    elif isinstance(node, Mapping):
        names, owner = list(node), "this mapping"
    elif isinstance(node, tuple | list):
        names, owner = [str(getattr(member, "name", index)) for index, member in enumerate(node)], "this list"
        if step in names or (step.isdigit() and int(step) < len(node)):
            return names.index(step) if step in names else int(step)
    else:
        raise ConfigError(f"{path!r} goes on after {type(node).__name__} value; drop '.{'.'.join(steps)}'")
    if step not in names:
        raise _no_such(step, names, path, owner)
    return step


def _kind(member: Any) -> Any:
    return Any if member is None else type(member)


def _no_such(step: str, names: list[str], path: str, owner: str) -> ConfigError:
    near = difflib.get_close_matches(step, names, n=3, cutoff=0.4) or names
    return ConfigError(f"{owner} has no {step!r} (in {path!r}); did you mean {', '.join(near)}?")


def _parse(text: str, hint: Any, path: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else ()
    if options:
        if type(None) in options and text.lower() in ("none", "null"):
            return None
        for option in options:
            if option is not type(None):
                try:
                    return _parse(text, option, path)
                except ConfigError:
                    continue
        raise ConfigError(f"{path}: {text!r} fits none of {hint}")
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{path} takes true or false, got {text!r}")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text.replace("_", ""))
        except ValueError:
            raise ConfigError(f"{path} takes {hint.__name__}, got {text!r}") from None
    if hint is str:
        return text
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        for choice in typing.get_args(hint):
            if str(choice) == text:
                return choice
        raise ConfigError(f"{path} takes one of {typing.get_args(hint)}, got {text!r}")
    if origin in (tuple, list):
        inner = (typing.get_args(hint) or (str,))[0]
        return tuple(_parse(item.strip(), inner, path) for item in text.strip("[]()").split(",") if item.strip())
    if hint is Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    raise ConfigError(f"{path} is a {getattr(hint, '__name__', hint)}; set a field inside it instead")
