"""How does a peer, in an environment of its own, get the cases, and how do its answers come back?

Cases are a JSON list in the file that is the first argument; answers go line by line into the second, as JSON, so that
what was answered before a crash counts. Standard library only: this file is imported by this project and by runners.

A case: `budget` FLOPs; `per_token`, C = per_token N D; `runs`, rows [N, D, C, loss, budget]; `near`, the places of
those near the minimum of their budget. The truth is not in it. An answer of a method: `loss`, `params`, `low` and
`high` of a 95% interval of the loss of one run, each None where the method has none.
"""

import json
import math
import os
import sys

QUESTIONS = {
    "optimum": "N* and D* of a budget",
    "loss": "the loss there",
    "loss_interval": "an interval of that loss",
    "params_interval": "an interval of N*",
    "anywhere": "the loss of any N and D",
    "profiles": "N* by IsoFLOP profiles, without a surface",
    "curves": "N* by training curves",
    "forms": "other surfaces than E + A/N^alpha + B/D^beta",
    "metric": "an accuracy or error instead of a loss",
    "compare": "which of two systems is better, and how surely",
    "next_runs": "which runs to train next",
    "sweep": "a sweep of sizes at stated budgets",
    "shapes": "the shape of a model of that size",
    "flops": "training FLOPs counted layer by layer",
    "cost": "an optimum where C is not 6 N D",
    "repeats": "how often to repeat scarce data",
    "serving": "a smaller model, trained longer, that is cheaper to serve",
    "rehearsal": "how well the larger budgets there are would have been predicted",
    "doubts": "what is doubtful about the fit, in words",
    "saved": "a fit written to a file and read again",
}


def near_rows(case):
    """The rows of the runs near the minimum of their budget."""
    return [case["runs"][i] for i in case["near"]]


def processor_seconds():
    """Of this process and those that it has waited for; a clock says little on a machine that others use."""
    return sum(os.times()[:4])


def attempt(function, *arguments):
    """What a method answers with the `seconds` of processors it took, or its `failure`: type and words of the error, or
    what is not finite."""
    start = processor_seconds()
    try:
        answer = function(*arguments)
    except Exception as error:  # whatever a peer raises is its answer
        return {"failure": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}
    for name, value in answer.items():
        if value is not None and not math.isfinite(value):
            return {"failure": f"{name} is {value}"}
    return dict(answer, seconds=processor_seconds() - start)


def answered(function, *arguments):
    """Whether a question gets an answer: the name of what gave it, or why not."""
    try:
        name, value = function(*arguments)
    except Exception as error:
        return {"failure": f"{type(error).__name__}: {error}"[:300]}
    return {"how": name} if value is not None else {"failure": f"{name} gave nothing"}


def serve(name, methods, questions):
    """Answers every case by every method, and every question on the first case."""
    with open(sys.argv[1], encoding="utf-8") as file:
        cases = json.load(file)
    with open(sys.argv[2], "a", encoding="utf-8") as file:

        def tell(**answer):
            file.write(json.dumps(answer) + "\n")
            file.flush()

        for question, function in questions.items():
            tell(question=question, **answered(function, cases[0]))
        for i, case in enumerate(cases):
            for method, function in methods.items():
                tell(case=i, method=method, **attempt(function, case))
            print(f"{name}: {i + 1} of {len(cases)} cases", file=sys.stderr, flush=True)
