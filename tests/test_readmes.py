"""What the READMEs say can be run is there and parses; every file and link they name exists."""

import dataclasses
import importlib.util
import pathlib
import re
import shlex

import pytest

from chinchilla_jax import cli
from chinchilla_jax.cli import verbs

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "chinchilla_jax"
READMES = sorted([ROOT / "README.md", *PACKAGE.rglob("README.md")])
NAMES = {path.name for folder in ("chinchilla_jax", "configs", "tests") for path in (ROOT / folder).rglob("*.*")}
# Words in capitals that stand for something of the reader's.
STANDS_FOR = {
    "FILE": "configs/isoflop.py:cpu",
    "SLICE": "v5e-1",
    "SHARED_FOLDER": "runs/shared",
    "FOLDER": "somewhere",
    "PATH": "somewhere",
    "VERB": "fit",
    "DIR": "studies/cpu",
    "HOST0": "localhost",
    "I": "0",
}


def spans(text: str) -> list[str]:
    """Inline code and the lines of fenced blocks, with continued lines joined."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for block in re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL):
        found += block.splitlines()
    return [span.strip() for span in found]


def commands(start: str) -> list[tuple[str, str]]:
    """(README, command) of every command that begins with `start`, perhaps behind variables or another program."""
    found = []
    for readme in READMES:
        for span in spans(readme.read_text(encoding="utf-8")):
            before, here, rest = span.partition(start)
            if here and re.fullmatch(r"((\S+=\S+|taskset -c 0) )*", before):
                found.append((readme.parent.name, f"{start}{rest}".split("  #")[0].strip()))
    return sorted(set(found))


def filled_in(word: str) -> str:
    return re.sub(r"\b[A-Z][A-Z0-9_]*\b", lambda m: STANDS_FOR.get(m.group(), m.group()), word)


@pytest.mark.parametrize(("readme", "command"), commands("python -m chinchilla_jax "))
def test_a_command_of_the_package_parses(readme, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = {name: dataclasses.replace(verb, run=lambda values, *words: 0) for name, verb in verbs.VERBS.items()}
    monkeypatch.setattr(verbs, "VERBS", parsed)
    assert cli.main([filled_in(word) for word in shlex.split(command)[3:]]) == 0


@pytest.mark.parametrize(("readme", "command"), commands("python -m ") + commands("bash "))
def test_what_a_command_runs_is_there(readme, command):
    program = shlex.split(command)[1 if command.startswith("bash ") else 2]
    if command.startswith("bash "):
        assert (ROOT / program).is_file()
    else:
        assert importlib.util.find_spec(program)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_files_and_links_exist(readme):
    text = readme.read_text(encoding="utf-8")
    named = {
        word
        for span in spans(text)
        for word in re.findall(r"(?<![\w/.*{-])[\w./-]+\.(?:py|md|csv|sh|txt)(?![\w*}])", span)
        if not word.startswith(("studies/", "runs/", "my_"))
    }
    roots = (ROOT, PACKAGE, readme.parent, *PACKAGE.glob("*/"), ROOT / "tests")
    missing = [
        word
        for word in sorted(named)
        if not any((root / word).exists() for root in roots) and ("/" in word or word not in NAMES)
    ]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing += [link for link in links if not (readme.parent / link).exists()]
    assert not missing
    assert len(text.splitlines()) <= (250 if readme.parent == ROOT else 200)


def test_the_readmes_name_commands():
    assert len(commands("python -m chinchilla_jax ")) > 20
    assert len(commands("python -m tests.benchmarks.")) > 8
