"""README and CONTRIBUTING hold: code runs, commands and options exist, paths are there."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stimopt import cli

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "examples/README.md")
MADE = ("name.py", "name.yaml", "stimopt-demo", "runs/", "studies/", "models/patient")  # placeholders and outputs


def blocks(language):
    """Fenced blocks of a language on every page, each with its page."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found += [(page, block) for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    return found


def command_lines():
    """Every `stimopt ...` of the pages and of the heads of the example files, as words after `stimopt`."""
    texts = [block for _, block in blocks("bash")]
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        texts += re.findall(r"^# +(stimopt .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    lines = []
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;|\|", line.partition("  #")[0]):
                words = shlex.split(part)
                if words and words[0] == "stimopt":
                    lines.append(tuple(words[1:]))
    return list(dict.fromkeys(lines))


def named_paths():
    """Paths that a page names: link targets, and anything in backticks that looks like one."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        quoted = re.findall(r"`([\w./-]+(?:\.(?:py|md|yaml|toml|txt|png|html)|/))`", text)
        found += [(page, path) for path in dict.fromkeys(links + quoted)]
    return [(page, path) for page, path in found if not any(made in path for made in MADE)]


def is_there(page, path):
    """Whether a path is there, as seen from its page, from the root, or inside one of the four packages."""
    places = [(ROOT / page).parent, ROOT, ROOT / "stimopt"]
    return any((place / path).exists() for place in places)


@pytest.mark.parametrize(("page", "code"), blocks("python") or [("no page", "")])
def test_every_python_block_runs(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_every_command_line_parses(words):
    parse(words)


@pytest.mark.parametrize(
    "words", [("dmeo",), ("demo", "--quik"), ("search", "a.yaml"), ("replay", "x", "--trials", "many")]
)
def test_a_command_line_that_is_wrong_would_be_noticed(words):
    with pytest.raises(AssertionError):
        parse(words)


@pytest.mark.parametrize(("page", "path"), named_paths())
def test_every_path_named_on_a_page_is_there(page, path):
    assert is_there(page, path), f"{page} names {path}, which is not there"


def test_the_pages_name_commands_and_paths_at_all():
    assert ("demo",) in command_lines()
    assert ("CONTRIBUTING.md", "stimopt/") in named_paths()
    assert not is_there("README.md", "stimopt/no_such_file.py")


def parse(words):
    """Hold a command line to the commands and options that there are, without running it."""
    group = typer.main.get_command(cli.app)
    assert words[0] in group.commands, f"there is no command {words[:1]}"
    command = group.commands[words[0]]
    try:
        command.make_context(words[0], list(words[1:]))
    except Exception as error:
        raise AssertionError(f"stimopt {' '.join(words)}: {error}") from error


def test_every_command_has_an_example_that_parses():
    for name, command in typer.main.get_command(cli.app).commands.items():
        example = re.search(r"Example: stimopt (.*)", command.help or "")
        assert example, f"stimopt {name} --help has no example"
        parse(tuple(shlex.split(example[1])))
        assert CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0
