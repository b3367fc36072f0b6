"""From words to a call: jsonargparse reads a function's signature, and what people type is brought into its form.

Dashes, underscores and dots are the same in an option's name; a size may be 96 or 64x48, a list a,b, a switch alone.
"""

import difflib
import inspect
import json
import re
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

from patchconvnet.errors import UserError

T = TypeVar("T")
SWITCH_VALUES = ("true", "false", "yes", "no")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


class HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """jsonargparse's help with examples on lines of their own; an option is required or has a default."""

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").strip()
        if not action.option_strings or isinstance(action, ActionConfigFile) or action.nargs == 0:
            return text
        if action.required and action.default in (None, SUPPRESS):
            return f"{text} (required)".strip()
        default = action.default
        if default is None or default is False or default in (SUPPRESS, {}) or "default" in text:
            return text
        return f"{text} (default: {_as_typed(default)})".strip()


def _as_typed(value: Any) -> str:
    if value is True:
        return "true"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


class CommandLine(ArgumentParser):
    """The parser of one command, whose answer to a mistake is a sentence.

    Args:
        function: the command; its docstring up to "Args:" is the help's beginning.
        aliases: older or shorter names of options.
    """

    def __init__(self, function: Callable[..., Any], aliases: Mapping[str, str] | None = None, **options: Any):
        name = function.__name__
        # jsonargparse looks for it in every package above; the front door's function of that name would load torch
        function.__qualname__ = f"{name}_command"
        super().__init__(
            prog=f"patchconvnet {name}",
            usage=options.pop("usage", f"patchconvnet {name} [options]"),
            formatter_class=HelpFormatter,
            description=(inspect.getdoc(function) or "").partition("\n\nArgs:")[0],
            allow_abbrev=False,
            **options,
        )
        self.aliases = dict(aliases or {})

    def hide(self, names: set[str]) -> None:
        """Leave options out of the help that are there for jsonargparse's own use."""
        for action in self._actions:
            if action.dest in names and not hasattr(action, "_typehint"):
                action.help = SUPPRESS
            if action.dest == "print_config":  # jsonargparse writes a backspace there
                action.metavar = "FLAGS"
                action.help = "print the recipe with all changes as YAML, and exit"

    def parse(self, words: Sequence[str]) -> Namespace:
        """What the words say.

        Raises:
            UserError: an unknown option, or a value that it cannot have.
        """
        return self.parse_args(list(self.normalised(words)))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # jsonargparse's words name Python's types; the option and the value are taken from them
        keys = re.findall(r'[Pp]arser key "(.+?)"', message)  # of a recipe and of what is in it
        given = re.search(r"[Vv]alue: (.*)", message)
        action = next((a for a in self._actions if keys and a.dest == keys[-1]), None)
        hint = getattr(action, "_typehint", None)
        if action and given and hint:
            self._complain(f"{self._shown(action)}: expected {expected(hint)}, not {given[1]}", ex)
        if action and hint and "integer string conversion" in message:  # Python's limit of 4,300 digits
            self._complain(f"{self._shown(action)}: expected {expected(hint)} of fewer digits", ex)
        if missing := re.search(r"arguments are required: (.+)", message):
            names = [name.strip() for name in missing[1].rstrip(".").split(",")]
            options = {a.dest: self._shown(a) for a in self._actions}
            self._complain(f"required: {', '.join(options.get(name, name) for name in names)}", ex)
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        if keys:
            lines = [f"{self._shown(action) if action else keys[-1]}:", *lines[-1:]]
        self._complain(" ".join(lines[:2]), ex)

    def _complain(self, message: str, cause: Exception | None = None) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise UserError(f"{message.rstrip('.')}{end} All options: {self.prog} --help") from cause

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file, flush=True)  # argparse would not say that it could not write

    def _shown(self, action: Action) -> str:
        return action.option_strings[0] if action.option_strings else action.dest

    def normalised(self, words: Sequence[str]) -> Iterator[str]:
        """The words as `--option=value`, with the names of options as they are known here.

        Raises:
            UserError: an unknown option, or one without its value.
        """
        names = {_key(name): name for name in self._option_string_actions if name.startswith("--")}
        names |= {_key(old): names[_key(new)] for old, new in self.aliases.items()}
        words = list(words)
        while words:
            word = words.pop(0)
            if word == "--":
                yield from (f"./{name}" if name.startswith("-") else name for name in words)
                return
            if not word.startswith("--"):
                if word.startswith("-") and word != "-h" and not re.fullmatch(r"-[\d.]+|-", word):
                    self._unknown(word)
                yield word
                continue
            typed, given, value = word.partition("=")
            name = names.get(_key(typed)) or self._within_options(typed, names)
            if name is None:
                self._unknown(typed)
            action = self._option_string_actions.get(name)
            hint = getattr(action, "_typehint", None)
            if action is not None and (action.nargs in (0, "?") or action.dest == "print_config"):
                yield name + given + value
                continue
            if not given:
                if hint is bool and (not words or words[0].lower() not in SWITCH_VALUES):
                    if words and not words[0].startswith("-") and not self._takes_words:
                        self._complain(f"{typed}: expected {expected(hint)}, not {words[0]}")
                    value = "true"
                elif words and not words[0].startswith("--"):
                    value = words.pop(0)
                else:
                    self._complain(f"{typed} needs a value: {expected(hint)}")
            yield f"{name}={_rewritten(hint, value)}"

    @property
    def _takes_words(self) -> bool:
        """Whether there is something to type that is no option, such as image files."""
        return any(not action.option_strings for action in self._actions)

    def _within_options(self, typed: str, names: Mapping[str, str]) -> str | None:
        """`--model.options.depth`, a key of a dictionary."""
        parent, _, key = typed.rpartition(".")
        name = names.get(_key(parent)) if parent else None
        return (
            f"{name}.{key}"
            if name and get_origin(getattr(self._option_string_actions[name], "_typehint", None)) is dict
            else None
        )

    def _unknown(self, typed: str) -> NoReturn:
        known = {_key(name): name for name in self._option_string_actions if name.startswith("--")}
        close = difflib.get_close_matches(_key(typed), known, n=1)
        self._complain(f"unknown option {typed}." + (f" Did you mean {known[close[0]]}?" if close else ""))


def taken(kind: type[T], values: dict[str, Any]) -> T:
    """Take a dataclass's fields out of what was parsed, and make one of them."""
    return kind(**{field.name: values.pop(field.name) for field in fields(cast(Any, kind))})


def expected(hint: Any) -> str:
    """A type in words: what an option takes."""
    if hint is None:  # a recipe
        return "a file or name"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    parts = get_args(hint)
    if NoneType in parts:
        return " or ".join([expected(part) for part in parts if part is not NoneType] + ["null"])
    if get_origin(hint) is tuple and parts[:2] == (int, int):
        return "two whole numbers such as 64x48"
    if get_origin(hint) in (tuple, list):
        return "a list of " + {int: "whole numbers", float: "numbers", str: "names"}.get(parts[0], "values")
    if get_origin(hint) is dict or hint is dict:
        return 'pairs such as {"depth": 4}'
    if parts:
        return " or ".join(map(expected, parts))
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _rewritten(hint: Any, value: str) -> str:
    """A size typed as 96 or 64x48, and a list typed as a,b, in the form that jsonargparse reads."""
    kinds = [hint] if get_origin(hint) is tuple else [hint, *get_args(hint)]  # of a union, its parts
    if tuple[int, int] in kinds:
        if sides := re.fullmatch(r"(\d+)\s*[x×,]\s*(\d+)", value):
            return f"[{sides[1]}, {sides[2]}]"
        if value.isdecimal() and int not in kinds:
            return f"[{value}, {value}]"
    for names in (tuple[str, ...], list[str]):
        if names in kinds and value != "null" and not value.startswith("["):
            return json.dumps([name.strip() for name in value.split(",")])
    return value


def _key(name: str) -> str:
    return re.sub(r"[-.]", "_", name.lstrip("-"))
