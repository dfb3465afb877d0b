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
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import chinchilla_jax
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.config import ConfigError, RunConfig, did_you_mean

_PARSERS = {
    int: (flags.IntegerParser(), "a whole number (int)"),
    float: (flags.FloatParser(), "a number (float)"),
    bool: (flags.BooleanParser(), "true or false (bool)"),
}


def define_config(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Loads the config that `argv` names and defines flags for the settings it changes.

    Returns:
      `argv` without `--config=FILE`, to be parsed with `values`.

    Raises:
      UsageError: the file is missing or broken, or settings come without a file.
      ConfigError: a setting that no config has, or one of the file's own.
    """
    where, rest = _take(argv)
    changed = [arg for arg in rest if re.match(r"--?(no)?config\.", arg)]
    if where is None:
        if changed:
            raise UsageError(f"{changed[0]}: there is no --config=FILE[:NAME] that it could change")
        return rest
    config = _load(where)
    _check_known(config, changed)
    _check_values(config, rest)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    return rest


def read_config(values: flags.FlagValues) -> RunConfig:
    """The validated config of a parsed command line.

    Raises:
      UsageError: there is no --config.
      ConfigError: an unknown key, a wrong type or an impossible value.
    """
    if "config" not in values:
        raise UsageError("--config=FILE[:NAME] is missing, e.g. --config=configs/isoflop.py:cpu")
    return RunConfig.from_dict(values["config"].value.to_dict())


def _take(argv: list[str]) -> tuple[str | None, list[str]]:
    value, rest, i = None, [], 0
    while i < len(argv):
        if re.match(r"--?config=", argv[i]):
            value = argv[i].partition("=")[2]
        elif re.fullmatch(r"--?config", argv[i]) and i + 1 < len(argv):
            i += 1
            value = argv[i]
        else:
            rest.append(argv[i])
        i += 1
    return value, rest


def _load(where: str) -> ConfigDict:
    name, colon, argument = where.partition(":")
    path = pathlib.Path(name)
    if not path.is_file() and path.parent in (pathlib.Path(), pathlib.Path("configs")):
        path = _shipped_configs() / path.name
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        offer = f"; {path.parent} has {', '.join(near)}" if near else ""
        raise UsageError(f"--config: no config file {name or '(empty)'}{did_you_mean(path.name, near)}{offer}")
    try:
        config = runpy.run_path(str(path))["get_config"](*([argument] if colon else []))
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).name == path.name]
        line = f":{lines[-1]}" if lines else ""
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, KeyError) and not lines:
            what = "no get_config() in it"
        raise UsageError(f"--config={where}: {path}{line}: {what}") from None
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={where}: get_config() must return a ConfigDict, got {type(config).__name__}")
    return config.lock()


def _shipped_configs() -> pathlib.Path:
    """The folder of the configs that come with the package: inside it when installed, beside it in a checkout."""
    package = pathlib.Path(chinchilla_jax.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _check_known(config: ConfigDict, changed: list[str]) -> None:
    known = _keys(config)
    for arg in changed:
        key = re.sub(r"^--?(no)?config\.", "", arg).partition("=")[0]
        if key in known:
            continue
        section, _, name = key.rpartition(".")
        siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
        if not siblings:
            section, name = "", key.partition(".")[0]
            siblings = [k for k in known if "." not in k]
        raise ConfigError(f"--config.{key}", f"unknown key {name!r}{did_you_mean(name, siblings)}; "
                          f"{section or 'a config'} has {', '.join(siblings)}")  # fmt: skip


def _check_values(config: ConfigDict, words: list[str]) -> None:
    """Numbers and truth values are checked here: the parsers' own messages speak of Python's `int()`."""
    settings = [word.lstrip("-").partition("=") for word in words if re.match(r"--?config\.", word)]
    settings += [(word.lstrip("-"), " ", value) for word, value in itertools.pairwise(words)
                 if re.fullmatch(r"--?config\.[^=]+", word) and not value.startswith("--")]  # fmt: skip
    for flag, sign, text in settings:
        value: Any = config
        for name in flag.split(".")[1:]:
            value = value[name]
        parser, expected = _PARSERS.get(type(value), (None, ""))
        if parser is None or not sign or (sign == " " and isinstance(value, bool)):
            continue  # --config.KEY alone switches on, and takes no word after it
        try:
            parser.parse(text)
        except (ValueError, TypeError):
            raise ConfigError(f"--{flag}={text}", f"expected {expected}{_whole(text) if type(value) is int else ''}; "
                              f"the config has {value!r}") from None  # fmt: skip


def _whole(text: str) -> str:
    """1e5 -> `: write 100000`, for a number that is whole and only not written so."""
    try:
        return f": write {int(number)}" if (number := float(text)).is_integer() else ""
    except ValueError:
        return ""


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        keys.append(prefix + key)
        if isinstance(value, ConfigDict):
            keys += _keys(value, f"{prefix}{key}.")
    return keys
