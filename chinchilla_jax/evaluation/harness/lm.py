"""A model as lm-evaluation-harness asks one: an `lm_eval.api.model.LM`, over a `Scorer`.

    lm_eval.simple_evaluate(model=TrainedLM(Scorer(open_model(folder))), tasks=[...])

Import this module only where `evaluate.need_lm_eval` has been called: it needs the package lm-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM

from chinchilla_jax.evaluation.harness.scorer import Scorer
from chinchilla_jax.generation.sampling import GREEDY, Sampling

_NEW_TOKENS = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # the first that is there counts
_DEFAULT_NEW = 256  # as many as the harness's own models write


class TrainedLM(LM):
    """Answers requests of the harness; `requests` have their words in `args`."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart."""
        return self.scorer.model.need_tokenizer().fingerprint()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): nats, and whether it is what a greedy model writes."""
        scores = self.scorer.scores_of([request.args for request in requests])
        return [(score.log_likelihood, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each whole text."""
        return self.scorer.log_likelihoods([request.args[0] for request in requests])

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written after each prompt, by the settings that come with it. Where a model's rows have no room for
        as many new tokens as asked, half of a row."""
        together: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            together.setdefault(self._settings(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for (new_tokens, stop, sampling), numbers in together.items():
            prompts = [requests[number].args[0] for number in numbers]
            for number, text in zip(numbers, self.scorer.write(prompts, new_tokens, stop, sampling), strict=True):
                texts[number] = text
        return texts

    def _settings(self, asked: Mapping[str, Any]) -> tuple[int, tuple[str, ...], Sampling]:
        """New tokens, stop strings, sampling."""
        until = asked.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        new = int(next((asked[name] for name in _NEW_TOKENS if asked.get(name) is not None), _DEFAULT_NEW))
        new = new if new < self.scorer.length else max(1, self.scorer.length // 2)
        temperature = float(asked.get("temperature") or 0.0)
        if not asked.get("do_sample", temperature > 0.0):
            return new, stop, GREEDY
        sampling = Sampling(temperature or 1.0, int(asked.get("top_k") or 0), float(asked.get("top_p") or 1.0))
        return new, stop, sampling
