"""The help texts, as docs/reference/commands.md. After a change that is meant: python tests/freeze_help.py"""

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent, fill
from typing import Any

import typer

from kithkin.cli import app

PAGE = Path(__file__).parent.parent / "docs/reference/commands.md"
OPENING = """\
# Commands

What `kithkin COMMAND --help` says, for every command. `kithkin --version` prints the version.
"""


def commands_page() -> str:
    """The text of the page."""
    return OPENING + "".join(section(name, command) for name, command in commands())


def commands(name: str = "kithkin", command: Any = None) -> Iterator[tuple[str, Any]]:
    """Every command that runs something, with its whole name."""
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", {})
    if not inner or command.invoke_without_command:  # a group may do something by itself
        yield name, command
    for word, below in inner.items():
        yield from commands(f"{name} {word}", below)


def section(name: str, command: Any) -> str:
    """The part of the page on one command."""
    shown = [p for p in command.params if not p.hidden and "--help" not in p.opts]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *map(usage_of, arguments)])
    parts = [f"## {name}", f"```text\n{usage}\n```", prose(command.help)]
    if arguments:
        rows = [f"| `{value_of(p)}` | {words(p.help)} |" for p in arguments]
        parts.append("\n".join(["| argument | |", "| --- | --- |", *rows]))
    if options:
        rows = [f"| {names_of(p)} | {words(p.help)}{default_of(p)} |" for p in options]
        parts.append("\n".join(["| option | |", "| --- | --- |", *rows]))
    parts.append(prose(command.epilog))
    return "\n" + "\n\n".join(part for part in parts if part) + "\n"


def value_of(parameter: Any) -> str:
    """The word that stands for a parameter's value."""
    return parameter.metavar or parameter.name.upper()


def usage_of(argument: Any) -> str:
    word = value_of(argument) + ("..." if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def names_of(option: Any) -> str:
    names = sorted([*option.opts, *option.secondary_opts], key=lambda name: not name.startswith("--"))
    value = "" if option.is_flag else " " + value_of(option)
    required = " (required)" if option.required else ""
    return ", ".join(f"`{name}{value if name == names[0] else ''}`" for name in names).replace("|", "\\|") + required


def default_of(option: Any) -> str:
    value = getattr(option.default, "value", option.default)
    if option.is_flag or not value or not option.show_default:
        return ""
    return f" Default: `{', '.join(map(str, value)) if isinstance(value, list) else value}`."


def words(text: str | None) -> str:
    """A help text on one line, without the marks of the terminal."""
    return re.sub(r"\s+", " ", (text or "").replace("\\[", "[")).strip().replace("|", "\\|")


def prose(text: str | None) -> str:
    """A longer help text as Markdown: what is indented or marked by a backspace is a block of commands."""
    blocks = re.split(r"\n\s*\n", cleandoc(text or "").replace("\\[", "["))
    return "\n\n".join(
        f"```sh\n{dedent(block.removeprefix(chr(8)).strip(chr(10)))}\n```"
        if block.startswith(("\b", "    ", "kithkin "))
        else fill(" ".join(block.split()), 100, break_long_words=False, break_on_hyphens=False)
        for block in blocks
    )


if __name__ == "__main__":
    PAGE.write_text(commands_page(), encoding="utf-8")
