"""What should a reader know of exported weights? The model card: what was trained, on what, at what cost and loss."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.revision import code_revision
from chinchilla_jax.interop.checkpoint import RunWeights
from chinchilla_jax.interop.folder import WeightsFolder
from chinchilla_jax.ledger import count_active, count_parameters
from chinchilla_jax.scaling.answers import on_record
from chinchilla_jax.scaling.read.runs import FitRefused


def text(weights: RunWeights | WeightsFolder, name: str, format: str, ids: Mapping[str, Any]) -> str:
    """`README.md` with front matter in YAML, as model hubs read it."""
    own = format == "chinchilla_jax"
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- chinchilla_jax"]
    lines += ["- custom_code"] if own else []
    lines += ["---", "", f"# {name}", ""]
    model = weights.model
    total, active = count_parameters(model).total, count_active(model)
    lines += ["| | |", "|---|---|", f"| N, parameters | {total:,} |"]
    lines += [f"| N that a token meets | {active:,} |"] if active != total else []
    shape = f"{model.n_layers} layers, width {model.d_model}, {model.n_heads} heads of {model.head_dim}"
    grouped = f" over {model.n_kv_heads} of keys" if model.n_kv_heads != model.n_heads else ""
    lines += [f"| shape | {shape}{grouped}, feed-forward {model.d_ff}, vocabulary {model.vocab_size:,} |"]
    lines += [f"| parts | {model.position} positions, {model.norm}, {model.feed_forward}, biases {model.biases} |"]
    lines += _trained(weights) if isinstance(weights, RunWeights) else [f"| converted from | {weights.kind} |"]
    lines += ["", "```python", "from transformers import AutoModelForCausalLM", ""]
    lines += [f"model = AutoModelForCausalLM.from_pretrained({name!r}{', trust_remote_code=True' if own else ''})"]
    lines += ["```", "", f"Written by chinchilla_jax {code_revision()}."]
    if "eos_token_id" in ids:
        lines += ["", f"Documents were separated by token {ids['eos_token_id']} in training."]
    return "\n".join(lines) + "\n"


def _trained(weights: RunWeights) -> list[str]:
    """The rows that only a run has."""
    run, config = weights.path, weights.config
    ledger, result = _json(run / "ledger.json"), _json(run / "result.json")
    lines = [f"| step | {weights.step:,} |"]
    if "tokens" in ledger:
        lines += [f"| D, tokens of the run | {ledger['tokens']:,} |"]
        lines += [f"| C, FLOPs, by {name} | {flops:.4g} |" for name, flops in ledger.get("flops", {}).items()]
    data = config.data
    lines += [f"| data | {data.source}, mixture {data.mixture}, rows of {data.seq_len} tokens |"]
    if "loss" in result:
        lines += [f"| validation loss, nats a token | {result['loss']:.4f} |"]
        lines += [f"| bits a byte | {result['bits_per_byte']:.4f} |"]
        domains = {key: value for key, value in result.get("validation", {}).items() if "/" in key}
        lines += [f"| {key} | {value:.4f} |" for key, value in domains.items()]
    return lines + _predicted(run)


def _predicted(run: Path) -> list[str]:
    """What the run's study had put on record before it was trained."""
    path = files.resolved(run).parent.parent / on_record.FOLDER / f"{files.resolved(run).name}.json"
    try:
        content = on_record.read(path)["content"]
    except FitRefused:
        return []
    low, high = content["intervals"]["95%"]
    return [f"| loss predicted before training | {content['loss']:.4f}, 95% of one run {low:.4f} to {high:.4f} |"]


def _json(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path)
    except (OSError, json.JSONDecodeError):
        return {}
