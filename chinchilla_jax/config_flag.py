"""`--config=FILE[:NAME] --config.SECTION.KEY=VALUE` as a `RunConfig`, with mistakes told in one line.

The file is loaded here, and `ml_collections` applies the settings to what it returned: its own loader would wrap the
mistakes of a config file in tracebacks.
"""

from __future__ import annotations

import itertools
import pathlib
import re
import runpy
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.config import ConfigError, RunConfig, did_you_mean

_SETTING = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_PARSERS = {
    int: (flags.IntegerParser(), "a whole number (int)"),
    float: (flags.FloatParser(), "a number (float)"),
    bool: (flags.BooleanParser(), "true or false (bool)"),
}


def define_config(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Loads the config that `argv` names and defines flags for the settings it changes.

    Returns `argv` without `--config=FILE`, to be parsed with `values`. Raises `UsageError` for a file that is missing
    or broken and for settings without a file, `ConfigError` for a setting that cannot be used.
    """
    where, rest = _take(argv)
    settings = [word for word in rest if _SETTING.fullmatch(word)]
    if where is not None:
        config = _load(where)
        _check(config, rest)
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    elif settings:
        raise UsageError(f"{settings[0]}: there is no --config=FILE[:NAME] that it could change")
    return rest


def read_config(values: flags.FlagValues) -> RunConfig:
    """The validated config of a parsed command line. Raises `UsageError` without --config, else as `from_dict`."""
    if "config" not in values:
        raise UsageError("--config=FILE[:NAME] is missing, e.g. --config=configs/isoflop.py:cpu")
    return RunConfig.from_dict(values["config"].value.to_dict())


def _take(argv: list[str]) -> tuple[str | None, list[str]]:
    where, rest, words = None, list[str](), iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        after = None if name not in ("--config", "-config") else value if equals else next(words, None)
        if after is None:
            rest.append(word)
        else:
            where = after
    return where, rest


def _load(where: str) -> ConfigDict:
    files.here(where)  # here, where a scheme has not been taken for a file with a config's name after it
    name, colon, argument = where.partition(":")
    path = pathlib.Path(name)
    if not files.is_file(path) and path.parent in (pathlib.Path(), pathlib.Path("configs")):
        package = pathlib.Path(__file__).parent  # the shipped configs are in it when installed, beside it in a checkout
        path = (package if files.is_folder(package / "configs") else package.parent) / "configs" / path.name
    if not files.is_file(path):
        near = [near.name for near in files.glob(path.parent, "*.py")]
        offer = f"; {path.parent} has {', '.join(near)}" if near else ""
        raise UsageError(f"--config: no config file {name or '(empty)'}{did_you_mean(path.name, near)}{offer}")
    try:
        config = runpy.run_path(str(path))["get_config"](*([argument] if colon else []))
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).name == path.name]
        what = f"{path}:{lines[-1]}: " if lines else f"{path}: "
        if isinstance(error, KeyError) and not lines:
            raise UsageError(f"--config={where}: {what}no get_config() in it") from None
        raise UsageError(f"--config={where}: {what}{type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={where}: get_config() must return a ConfigDict, got {type(config).__name__}")
    return config.lock()


def _check(config: ConfigDict, words: list[str]) -> None:
    """Refuses keys that the config does not have, and numbers and truth values that cannot be read.

    The parsers' own messages speak of Python's `int()`.
    """
    known = dict(_items(config))
    pairs = itertools.zip_longest(words, words[1:], fillvalue="--")
    settings = [(*setting.groups(), after) for word, after in pairs if (setting := _SETTING.fullmatch(word))]
    for _, key, _, _ in settings:
        if key not in known:
            raise _unknown(key, known)
    for no, key, text, after in settings:
        value = known[key]
        if text is None and not isinstance(value, bool) and not after.startswith("--"):
            text = after  # --config.KEY alone switches on, and takes no word after it
        if no and text is not None:
            raise ConfigError(f"--noconfig.{key}", f"takes no value, got {text!r}; use --config.{key}=...")
        if no or text is None or type(value) not in _PARSERS:
            continue
        parser, expected = _PARSERS[type(value)]
        try:
            parser.parse(text)
        except (ValueError, TypeError):
            expected += _whole(text) if type(value) is int else ""
            raise ConfigError(f"--config.{key}={text}", f"expected {expected}; the config has {value!r}") from None


def _unknown(key: str, known: Mapping[str, Any]) -> ConfigError:
    """What to say of a key that the config does not have: the keys of its section, or the sections."""
    section, _, name = key.rpartition(".")
    if section in known and known[section] is None:
        return ConfigError(f"--config.{key}", f"this config has no section {section}; give it one in the file")
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
    if not siblings:
        section, name, siblings = "", key.partition(".")[0], [k for k in known if "." not in k]
    what = f"unknown key {name!r}{did_you_mean(name, siblings)}"
    return ConfigError(f"--config.{key}", f"{what}; {section or 'a config'} has {', '.join(siblings)}")


def _whole(text: str) -> str:
    """1e5 -> `: write 100000`, for a number that is whole and only not written so."""
    try:
        return f": write {int(number)}" if (number := float(text)).is_integer() else ""
    except ValueError:
        return ""


def _items(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key and its value, sections first."""
    for key, value in config.items():
        yield prefix + key, value
        if isinstance(value, ConfigDict):
            yield from _items(value, f"{prefix}{key}.")
