"""The help texts that `test_cli.py` holds frozen. After a change that is meant: python tests/freeze_help.py."""

import re
from pathlib import Path

from typer.testing import CliRunner

FROZEN = Path(__file__).parent / "frozen"
VERBS = (
    *("", "restore", "eval", "compare", "neighbors", "train", "ablate", "ablate network", "ablate train"),
    *("export", "models", "models show", "models cost", "recipes", "recipes show"),
    *("data", "data list", "data check", "data prepare", "data pack", "data index", "serve", "doctor"),
)


def frozen_file(verb: str) -> Path:
    return FROZEN / f"{verb.replace(' ', '-') or 'kithkin'}.txt"


def help_words(verb: str) -> str:
    """What `kithkin VERB --help` says, without colours, frames and line breaks, which follow the terminal."""
    from kithkin.cli import app

    result = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    return " ".join(re.sub(r"[│╭╮╰╯─]+", " ", plain).split())


if __name__ == "__main__":
    FROZEN.mkdir(exist_ok=True)
    for name in VERBS:
        frozen_file(name).write_text(help_words(name) + "\n", encoding="utf-8")
