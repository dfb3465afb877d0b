"""What does a header say: which field, in which multiple, under which count of parameters or FLOPs?

Headers are compared without regard to case and punctuation. A multiplier at the end of one is understood
(`params_millions`, `tokens_b`, `N (B)`, `compute (PF-days)`, `total_gflops`), and so is a named count
(`params_non_embedding`, `flops_table_a4`). Of a path (`throughput/total_tokens`) the last part may do.
"""

from __future__ import annotations

import re

from chinchilla_jax.config import CONVENTIONS
from chinchilla_jax.scaling.read.table.cells import FLOP_PREFIXES, MULTIPLIERS

COUNTED = {"params": ("total", "non_embedding", "active", "nominal"), "flops": CONVENTIONS}
# Headers met in published run tables, the more specific ones first. From `batch` on they are no fields of a run, but
# one may be computed from them.
_HEADERS = {
    "name": "name run run_name run_id id",
    "params": """params n_params num_params model_params parameters n_parameters num_parameters model_parameters
        param_count parameter_count params_count model_size n""",
    "tokens": """tokens n_tokens num_tokens train_tokens training_tokens tokens_seen tokens_trained total_tokens
        tokens_total total_train_tokens total_training_tokens consumed_tokens tokens_consumed token_count
        dataset_size d""",
    "loss": "loss final_loss val_loss validation_loss eval_loss test_loss train_loss training_loss l",
    "flops": """flops flop training_flops training_flop train_flops train_flop total_flops compute training_compute
        train_compute total_compute c""",
    "budget": "budget isoflop_budget flop_budget flops_budget compute_budget",
    "role": "role",
    "curve": "curve loss_curve learning_curve training_curve",
    "diverged": "diverged is_diverged has_diverged",
    "step": """step global_step steps iteration iter iterations iters train_steps training_steps num_steps n_steps
        total_steps eval_step last_step""",
    "seed": """seed random_seed train_seed training_seed init_seed model_seed data_seed rng_seed replicate replica
        repeat""",
    "state": "state run_state status run_status",
    "epochs": "epochs n_epochs num_epochs total_epochs data_epochs train_epochs repetitions",
    "batch": """batch_size batch global_batch_size train_batch_size total_batch_size sequences_per_batch
        sequences_per_step bs""",
    "batch_tokens": """batch_tokens tokens_per_batch tokens_per_step batch_size_tokens batch_size_in_tokens
        global_batch_tokens""",
    "length": """seq_len seq_length sequence_length sequence_len context_length context_len max_seq_len
        max_sequence_length max_seq_length block_size ctx_len n_ctx seqlen context""",
    "tokens_per_param": """tokens_per_param tokens_per_params tokens_per_parameter token_param_ratio
        tokens_params_ratio tokens_params tokens_param token_per_param tpp d_n d_over_n""",
    "perplexity": """perplexity ppl val_ppl val_perplexity validation_perplexity validation_ppl eval_ppl
        eval_perplexity test_ppl test_perplexity final_ppl final_perplexity train_ppl train_perplexity""",
    "loss_bits": """loss_bits val_loss_bits eval_loss_bits test_loss_bits train_loss_bits loss_in_bits bits_per_token
        val_bits_per_token""",
    "bits_per_byte": """bits_per_byte bpb val_bpb val_bits_per_byte eval_bpb eval_bits_per_byte test_bpb
        test_bits_per_byte loss_bpb val_loss_bpb final_bpb train_bpb train_bits_per_byte""",
    "bytes_per_token": "bytes_per_token bytes_token avg_bytes_per_token mean_bytes_per_token",
}
HEADERS = {field: tuple(words.split()) for field, words in _HEADERS.items()}
_SCALED = ("params", "tokens", "flops", "budget", "batch_tokens")
_PF_DAY = 86400e15  # FLOPs (Kaplan et al. 2020, section 1.1)
_COUNTS = {
    "non_embedding": r"_?(?:non|no|without|excl|excluding)_?(?:emb|vocab)[a-z]*",
    "active": r"^active_|_active$|_activated$|^activated_",
    "nominal": r"^nominal_|_nominal$",
    "total": r"^total_|_total$|_?(?:with|incl|including)_emb[a-z]*",
}
_EXACT = r"_(?:precise|exact|actual)$"
_RATES = ("throughput", "speed", "perf", "performance", "time", "timing")
# Words that make something else of a column with `loss` in its name: a part of it, a spread, another unit.
_NO_LOSS = frozenset(
    """aux auxiliary router routing balance balancing balanced load scale scaling std stderr se sem var variance stdev
    diff delta ratio gap bits bit byte bytes bpb weight coef coefficient relative excess reducible norm grad pred
    predicted prediction fit fitted step steps idx min max""".split()
)
_HELD_OUT = ("val_loss", "eval_loss", "validation_loss", "test_loss", "valid_loss", "heldout_loss", "held_out_loss")


def split_words(header: str) -> list[str]:
    """`nParams (B)` -> [`n`, `params`, `b`]."""
    return re.findall(r"[a-z0-9^+]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", header).lower())


def joined_words(header: str) -> str:
    """`nParams (B)` -> `n_params_b`."""
    return "_".join(split_words(header))


def understand(field: str, header: str) -> tuple[str, float, str]:
    """`Params (non-embedding, M)` -> (`params`, 1e6, `non_embedding`), for a column that serves as `field`."""
    words = split_words(header)
    factor = 1.0
    if field in _SCALED:
        factor, words = _take_factor(words, field)
    base, count = "_".join(words), ""
    if field == "params":
        base = re.sub(_EXACT, "", base)
        for name, pattern in _COUNTS.items():
            if re.search(pattern, base):
                base, count = re.sub(pattern, "", base).strip("_"), name
                break
    elif field == "flops":
        for convention in CONVENTIONS:
            if base.endswith(f"_{convention}"):
                base, count = base.removesuffix(f"_{convention}"), convention
    return base, factor, count


def is_header(field: str, header: str) -> bool:
    """Whether the whole header names this field."""
    return understand(field, header)[0] in HEADERS[field]


def readings(header: str) -> list[str]:
    """The header, and the last part of a path (`throughput/total_tokens`) unless its parts are a ratio or a rate."""
    first, *rest = (part.strip() for part in re.split(r"[/.]", header))
    if not rest or not all(rest) or len(rest[-1]) < 3 or first[-1:].isdigit():
        return [header]
    is_ratio = any(is_header(field, first) for field in ("params", "tokens", "flops", "loss"))
    is_rate = (split_words(first) or [""])[-1] in _RATES and not rest[-1].lower().startswith("total")
    return [header] if is_ratio or is_rate else [header, rest[-1]]


def loss_rank(header: str) -> int | None:
    """How likely an unlisted header is the loss: 0 held-out, 1 of some corpus, 2 of training; None: it is not."""
    words = split_words(header)
    if "loss" not in (words[:1] + words[-1:]) or any(word in _NO_LOSS or len(word) == 1 for word in words):
        return None
    if "train" in words or "training" in words:
        return 2
    return 0 if "_".join(words).endswith(_HELD_OUT) else 1


def _take_factor(words: list[str], field: str) -> tuple[float, list[str]]:
    """The multiplier at the end of a header's words, and the words before it."""
    joined = "_".join(words)
    if pf_days := re.search(r"._(?:in_)?(?:pf|pflop|pflops|petaflop|petaflops)_?days?$", joined):
        return _PF_DAY, joined[: pf_days.start() + 1].split("_")
    if field in ("flops", "budget") and words and (unit := re.fullmatch(r"([kmgtpezy])flops?", words[-1])):
        rest = _without_in(words[:-1])
        if not rest:  # alone, kFLOPs to PFLOPs are more often a speed
            return (FLOP_PREFIXES[unit[1]], ["flops"]) if unit[1] in "ezy" else (1.0, words)
        named = "_".join(rest) in HEADERS[field]
        return FLOP_PREFIXES[unit[1]], rest if named else [*rest, "flops"]
    if len(words) < 2:
        return 1.0, words
    if len(words) > 2 and words[-1] in ("flop", "flops") and _power(words[-2]):
        words = words[:-1]
    factor = _power(words[-1]) or MULTIPLIERS.get(words[-1].removeprefix("x"))
    return (1.0, words) if factor is None else (factor, _without_in(words[:-1]))


def _power(word: str) -> float | None:
    power = re.fullmatch(r"x?(?:1e|10\^)\+?(\d{1,2})", word)
    return 10.0 ** int(power[1]) if power else None


def _without_in(words: list[str]) -> list[str]:
    return words[:-1] if len(words) > 1 and words[-1] == "in" else words
