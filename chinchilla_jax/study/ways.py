"""In which ways does a study train its models? Texts of the config, `plain` or NAME KEY=VALUE ...

    patch size=4 share=0.667                the first two thirds of the tokens in patches of four (Shao et al. 2024)
    growth share=0.5 factor=2               half of the tokens in a model of half the width, heads and feed-forward
                                            width (Yao et al. 2023); also layers=K, ramp=, new_layers=, rewind=true,
                                            warmup_steps=
    ds_moe experts=16 router_loss=0.01      the feed-forward units shared out among experts, all of which are trained
                                            (Pan et al. 2024)
    top_k experts=8 active=2 router_loss=0.01   as many active units in `active` of `experts` experts, so more in all

Every cell of the study, a size at a budget, is trained in each of them, at the same C. The words are those of
`method.py`; a share is of the tokens.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

from chinchilla_jax.config import ConfigError, RunConfig, did_you_mean
from chinchilla_jax.method import Growth, GrowthStage, Patch
from chinchilla_jax.scaling.read.directories import PLAIN

_KEY = "study.methods"


class Unfit(Exception):
    """A model that cannot be trained in a way; the message says why."""


def _patch(config: RunConfig, size: int = 4, share: float = 2 / 3) -> RunConfig:
    return dataclasses.replace(config, method=Patch(size=size, share=share))


def _growth(
    config: RunConfig,
    share: float = 0.5,
    factor: int = 2,
    layers: int = 0,
    ramp: float = 0.25,
    new_layers: str = "interleave",
    rewind: bool = False,
    warmup_steps: int = 0,
) -> RunConfig:
    """The model begins with 1 / `factor` of its width, heads and feed-forward width, and `layers` layers if not 0."""
    model, smaller = config.model, {}
    for name in ("d_model", "n_heads", "n_kv_heads", "d_ff"):
        smaller[name], rest = divmod(getattr(model, name), factor)
        if rest:
            raise Unfit(f"model.{name}={getattr(model, name)} cannot begin at 1/{factor}")
    stage = GrowthStage(share=share, n_layers=layers, **smaller)
    method = Growth(stages=(stage,), ramp=ramp, new_layers=new_layers, rewind=rewind, warmup_steps=warmup_steps)
    return dataclasses.replace(config, method=method)


def _ds_moe(config: RunConfig, experts: int = 16, router_loss: float = 0.01) -> RunConfig:
    if config.model.feed_forward != "gelu":
        raise Unfit(f"experts of ds_moe have no gate: model.feed_forward={config.model.feed_forward} is another layer")
    return _of_experts(config, router_loss, feed_forward="ds_moe", experts=experts)


def _top_k(config: RunConfig, experts: int = 8, active: int = 2, router_loss: float = 0.01) -> RunConfig:
    kinds = {"gelu": "top_k", "swiglu": "top_k_swiglu"}
    if config.model.feed_forward not in kinds:
        raise Unfit(f"model.feed_forward={config.model.feed_forward} is no dense layer to make experts of")
    width, rest = divmod(config.model.d_ff, active)
    if rest:
        raise Unfit(f"model.d_ff={config.model.d_ff} does not divide over {active} active experts")
    shape = {
        "feed_forward": kinds[config.model.feed_forward],
        "experts": experts,
        "active_experts": active,
        "d_ff": width * experts,
    }
    return _of_experts(config, router_loss, **shape)


def _of_experts(config: RunConfig, router_loss: float, **shape: Any) -> RunConfig:
    model = dataclasses.replace(config.model, **shape)
    return dataclasses.replace(
        config, model=model, optimizer=dataclasses.replace(config.optimizer, router_loss=router_loss)
    )


WAYS: dict[str, Callable[..., RunConfig]] = {"patch": _patch, "growth": _growth, "ds_moe": _ds_moe, "top_k": _top_k}


def check(ways: tuple[str, ...]) -> None:
    """Raises ConfigError unless every text can be read, once each, and `plain` is one of them."""
    read = [_whole(way) for way in ways]
    if any(one in read[:i] for i, one in enumerate(read)) or len({slug(way) for way in ways}) < len(ways):
        raise ConfigError(_KEY, f"lists a way to train twice: {', '.join(ways)}")
    if ways and PLAIN not in ways:
        raise ConfigError(_KEY, f"add '{PLAIN}': it is what the others are compared with")


def trained(config: RunConfig, way: str) -> RunConfig:
    """The config of a run whose model is trained this way. Raises Unfit if that model cannot be."""
    name, values = _read(way)
    if name == PLAIN:
        return config
    try:
        return WAYS[name](config, **values)
    except ConfigError as error:
        raise Unfit(str(error)) from None


def _whole(way: str) -> tuple[str, dict[str, Any]]:
    """The name, and every value, stated or not."""
    name, values = _read(way)
    if name == PLAIN:
        return name, values
    _, *parameters = inspect.signature(WAYS[name]).parameters.values()
    return name, {parameter.name: values.get(parameter.name, parameter.default) for parameter in parameters}


def slug(way: str) -> str:
    """What the names of runs have of it: `patch_size4_share0.667`."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", re.sub(r"\s*=\s*", "", way.strip()))


def _read(way: str) -> tuple[str, dict[str, Any]]:
    """The name and the values of a text."""
    name, *settings = re.sub(r"\s*=\s*", "=", way).split() or [""]
    if name == PLAIN and not settings:
        return name, {}
    if name not in WAYS:
        hint = did_you_mean(name, [PLAIN, *WAYS])
        raise ConfigError(_KEY, f"unknown way {way!r}{hint}; one of {', '.join([PLAIN, *WAYS])}")
    _, *parameters = inspect.signature(WAYS[name], eval_str=True).parameters.values()
    known = {parameter.name: parameter.annotation for parameter in parameters}
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in known:
            form = f"write KEY=VALUE{did_you_mean(key, known)}; {name} has {', '.join(known)}"
            raise ConfigError(_KEY, f"{setting!r} in {way!r}: {form}")
        if key in values:
            raise ConfigError(_KEY, f"{way!r} says {key} twice")
        values[key] = _value(way, key, text, known[key])
    return name, values


def _value(way: str, key: str, text: str, kind: type) -> Any:
    if kind is bool:
        words = {"true": True, "false": False}
        if text not in words:
            raise ConfigError(_KEY, f"{key} in {way!r}: true or false, got {text!r}")
        return words[text]
    try:
        value = kind(text)
    except ValueError:
        raise ConfigError(_KEY, f"{key} in {way!r}: expected {kind.__name__}, got {text!r}") from None
    if kind in (int, float) and not 0 < value < math.inf:
        raise ConfigError(_KEY, f"{key} in {way!r}: must be positive and finite")
    return value
