"""How do Hugging Face configs say rotary positions? Two ways: readers of one miss the other, so both are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_jax.config import ConfigError, ModelConfig
from chinchilla_jax.interop.hf.fields import Fields
from chinchilla_jax.model.rope_scaling import KINDS, read_scaling, scaling_text


def read_rope(fields: Fields, default_theta: float) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a `ModelConfig`.

    Version 4 has `rope_theta` and `rope_scaling` beside each other, version 5 both in `rope_parameters`.
    """
    theta = fields.take("rope_theta", float, None)
    older, newer = fields.take("rope_scaling", dict, {}), fields.take("rope_parameters", dict, {})
    within = [float(found["rope_theta"]) for found in (older, newer) if found.get("rope_theta") is not None]
    thetas = {value for value in [theta, *within] if value is not None}
    if len(thetas) > 1:
        raise fields.refused("rope_theta", f"is said twice, as {' and '.join(map(repr, sorted(thetas)))}")
    scalings = {_scaling(found, fields) for found in (older, newer) if found}
    if len(scalings) > 1:
        raise fields.refused("rope_scaling", "and rope_parameters say different things")
    return {"rope_theta": thetas.pop() if thetas else default_theta, "rope_scaling": scalings.pop() if scalings else ""}


def _scaling(values: Mapping[str, Any], fields: Fields) -> str:
    rest = {name: value for name, value in values.items() if name not in ("rope_theta", "rope_type", "type")}
    kind = values.get("rope_type") or values.get("type")
    if kind is None and rest:
        raise fields.refused("rope_type", f"is missing beside {', '.join(rest)}")
    if kind in (None, "default"):
        # A length alone changes nothing; a factor would.
        if set(rest) - {"original_max_position_embeddings"}:
            raise fields.refused("rope_type", f"'default' has no {', '.join(rest)}")
        return ""
    if kind not in KINDS:
        raise fields.refused("rope_type", f"{kind!r} is not supported; only default, {', '.join(KINDS)}")
    names = KINDS[kind].numbers
    unknown = sorted(set(rest) - set(names) - {"original_max_position_embeddings"})
    missing = [name for name in names if rest.get(name) is None]
    if unknown or missing:
        raise fields.refused("rope_scaling", f"{kind} has {', '.join(unknown) or 'no ' + ', '.join(missing)}")
    text = scaling_text(kind, tuple(rest[name] for name in names))
    try:
        read_scaling(text)
    except ConfigError as error:
        raise fields.refused("rope_scaling", error.message) from None
    return text


def write_rope(model: ModelConfig) -> dict[str, Any]:
    """The same in both spellings."""
    scaling = read_scaling(model.rope_scaling)
    said: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        said = {"rope_type": scaling.kind, **dict(zip(KINDS[scaling.kind].numbers, scaling.numbers, strict=True))}
        if (length := said.get("original_max_position_embeddings")) is not None:
            said["original_max_position_embeddings"] = int(length)
    older = dict(said) if scaling is not None else None
    return {
        "rope_theta": model.rope_theta,
        "rope_scaling": older,
        "rope_parameters": {**said, "rope_theta": model.rope_theta},
    }
