"""Does transformers compute with exported weights what this code does? Run by a Python that has torch, without JAX.

    python tests/interop/check_torch.py FOLDER    # what `python -m tests.interop.exports FOLDER` wrote

For every export in the folder a row of the largest differences of float32 logits: of whole rows (`logits`), of rows
read in pieces into a cache (`cached`), and of prompts padded on the left beside each alone (`padded`); then of the loss
from one computed here; whether greedy continuations are the tokens that this code gives, and whether a model saved by
transformers has every tensor to the bit. Fails where a difference is above 1e-4 or anything else differs. Models that
only our own code can say are loaded with trust_remote_code.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import tempfile
import warnings

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

TOLERANCE = 1e-4
FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
CACHE = "cache" if "cache" in FIELDS else "past_key_values"  # as versions since 5.24 and before call it
LENGTHS = (5, 9)  # of the prompts


def loaded(folder: pathlib.Path) -> torch.nn.Module:
    """The model of a folder; fails if any tensor is missing, unexpected or of another shape."""
    own = json.loads((folder / "config.json").read_text())["model_type"] == "chinchilla_jax"
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=own, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {what: names for what, names in told.items() if names}
    assert not wrong, f"{folder}: {wrong}"
    return model.eval()


def in_pieces(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The logits of rows that are read into a cache, some tokens at a time."""
    found, cache, start = [], None, 0
    for count in (7, 1, 1, 12, ids.shape[1] - 21):
        out = model(ids[:, start : start + count], **{CACHE: cache}, use_cache=True)
        found.append(out.logits)
        cache, start = out[CACHE], start + count
    return torch.cat(found, 1)


def padded(prompts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The prompts as one batch, with padding on the left."""
    longest = max(map(len, prompts))
    rows = [torch.cat([torch.zeros(longest - len(prompt), dtype=torch.long), prompt]) for prompt in prompts]
    masks = [torch.arange(longest) >= longest - len(prompt) for prompt in prompts]
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks).long()}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def check(folder: pathlib.Path) -> dict[str, float | bool]:
    """What the table has in a row."""
    arrays = np.load(folder / "expected.npz", allow_pickle=False)
    ids, logits = torch.from_numpy(arrays["ids"]).long(), torch.from_numpy(arrays["logits"])
    model = loaded(folder)
    whole = model(ids, labels=ids, use_cache=False)
    row = {"logits": difference(whole.logits, logits), "cached": difference(in_pieces(model, ids), logits)}
    prompts = [row.long() for row in torch.from_numpy(arrays["prompts"]).split(LENGTHS)]
    batch = padded(prompts)
    told = {"output_logits": True, "return_dict_in_generate": True}
    beside = model.generate(**batch, max_new_tokens=1, do_sample=False, **told)
    alone = torch.cat([model(prompt[None], use_cache=False).logits[:, -1] for prompt in prompts])
    row["padded"] = difference(beside.logits[0], alone)
    settings = {"do_sample": False, "min_new_tokens": None, "eos_token_id": None, "pad_token_id": 0}
    made = model.generate(**batch, max_new_tokens=12, **settings)[:, batch["input_ids"].shape[1] :]
    row["greedy"] = bool((made == torch.from_numpy(arrays["greedy"])).all())
    likely = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])
    row["loss"] = abs(float(whole.loss + likely.mean()))
    row["saved"] = saves(model, folder)
    return row


def saves(model: torch.nn.Module, folder: pathlib.Path) -> bool:
    """Whether the tensors that transformers writes are those of the folder."""
    with tempfile.TemporaryDirectory() as room:
        model.save_pretrained(room)
        theirs, ours = (load_file(pathlib.Path(path) / "model.safetensors") for path in (room, folder))
    return theirs.keys() == ours.keys() and all(theirs[name].tobytes() == ours[name].tobytes() for name in ours)


def main(root: pathlib.Path) -> bool:
    """Prints the table. Returns whether all is as it should be."""
    folders = sorted(path.parent for path in root.glob("*/expected.npz"))
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {len(folders)} models")
    print(f"{'':28}{'logits':>9}{'cached':>9}{'padded':>9}{'loss':>9}  greedy saved")
    fine = bool(folders)
    for folder in folders:
        row = check(folder)
        numbers = [row[name] for name in ("logits", "cached", "padded", "loss")]
        print(f"{folder.name:28}" + "".join(f"{x:9.1e}" for x in numbers) + f"  {row['greedy']!s:6} {row['saved']}")
        fine = fine and max(numbers) < TOLERANCE and row["greedy"] and row["saved"]
    return fine


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    sys.exit(0 if main(pathlib.Path(sys.argv[1])) else 1)
