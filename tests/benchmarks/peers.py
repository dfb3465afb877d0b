"""How do predictions of this project stand beside those of its peers, on the same tables and the same questions?

    python -m tests.benchmarks.peers [--peers=simple-scaling-laws,chinchilla] [--answers=FOLDER] [--python=PATH ...]

Peers are fetched by pip into environments of their own under `--cache` and run as processes
(`tests/benchmarks/peer_runners`); one that cannot be installed is left out, with the reason. Cases are those of
`tests.benchmarks.prediction`: a hidden budget 3 to 6 times the largest of four, and the largest of a table. Seconds are
the median of a case, of processors: fit, intervals and prediction together. What a method does not answer is counted
and named; its errors are those of the other cases. Last, which questions each can answer at all: each is asked once, by
a call. In `--answers` what was answered is kept, and who has answered is not asked again.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.scaling.fits.approach3.parametric import few_starts, fit_parametric
from chinchilla_jax.scaling.fits.resample import Resampling
from chinchilla_jax.scaling.fits.variants import fit_varpro
from chinchilla_jax.scaling.predict.analysis import Analysis
from chinchilla_jax.scaling.predict.estimates import estimates_of
from chinchilla_jax.scaling.read.runs import Run
from tests.benchmarks import peer_questions, prediction
from tests.benchmarks.peer_runners import exchange

RUNNERS = pathlib.Path(__file__).parent / "peer_runners"
CACHE = "~/.cache/chinchilla_jax/peers"
# By name: what pip installs, the oldest Python it takes, and its runner.
PEERS = {
    "simple-scaling-laws": ("simple-scaling-laws==0.2.0", (3, 12), "run_simple_scaling_laws.py"),
    "chinchilla": ("chinchilla==0.2.0", (3, 8), "run_chinchilla.py"),
}
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")}
_NUMBER = re.compile(r"-?\d[\d.]*(e[+-]?\d+)?")
COLUMNS = ("params", "tokens", "flops", "loss", "budget")
OURS = "this project"


class CannotRun(Exception):
    """A peer cannot be tried; the message says why."""


def cases() -> tuple[list[dict], list[tuple[str, str, tuple[float, float]]]]:
    """The cases as `exchange` has them; and of each the table, the kind, and the truth, N* and L*."""
    asked, known = [], []
    for table, groups in prediction.tables().items():
        for kind, fitted, budget, truth in prediction.cases(groups):
            if kind in prediction.BRIEF:
                runs = [run for c in fitted for run in groups[c]]
                kept = {id(run) for run in prediction.near(runs)}
                rows = [[getattr(run, name) for name in COLUMNS] for run in runs]
                near = [i for i, run in enumerate(runs) if id(run) in kept]
                per_token = prediction.per_token(runs)
                asked.append({"budget": budget, "per_token": per_token, "runs": rows, "near": near})
                known.append((table, kind, truth))
    return asked, known


def runs_of(rows: list[list[float]]) -> list[Run]:
    """Rows of a case as runs."""
    return [Run(f"{i}", **dict(zip(COLUMNS, row, strict=True))) for i, row in enumerate(rows)]


def _answer(predicted: float, params: float, span) -> dict:
    low, high = span or (None, None)
    return {"loss": float(predicted), "params": float(params), "low": low, "high": high}


def _by(method):
    """A method of `prediction` as a method for a case."""
    return lambda case: _answer(*method(runs_of(case["runs"]), case["budget"]))


def approach_3(case: dict) -> dict:
    """Approach 3 with its bootstrap, 200 resamples."""
    runs = tuple(runs_of(case["runs"]))
    fit = fit_parametric(runs, starts=few_starts(), resampling=Resampling(200))
    fits = Analysis("corrected", runs, 0, None, None, fit, {})
    estimate = estimates_of(fits, case["budget"], case["per_token"])["parametric"]
    return _answer(estimate.loss, estimate.params, estimate.intervals["loss"][0.95])


def variable_projection(case: dict) -> dict:
    """Approach 3 by variable projection, which has no intervals."""
    params, _, loss = fit_varpro(runs_of(case["runs"])).surface.optimum(case["budget"], case["per_token"])
    return _answer(loss, params, None)


METHODS = {
    "recommended": _by(prediction.recommended),
    "approach 3": approach_3,
    "variable projection": variable_projection,
    "Skaling, near": _by(prediction.of_near(prediction.skaling)),
}


def ours(asked: list[dict]) -> list[dict]:
    """This project's answers, as lines of `exchange`."""
    first = runs_of(asked[0]["runs"]), asked[0]["budget"]
    lines = [dict(question=q, **exchange.answered(f, *first)) for q, f in peer_questions.QUESTIONS.items()]
    for i, case in enumerate(asked):
        lines += [dict(case=i, method=name, **exchange.attempt(method, case)) for name, method in METHODS.items()]
        print(f"{OURS}: {i + 1} of {len(asked)} cases", file=sys.stderr, flush=True)
    return lines


def interpreter(least: tuple[int, int], tried: list[str]) -> str:
    """The first Python that is new enough; CannotRun where there is none."""
    code = f"import sys; sys.exit(sys.version_info < {least!r})"
    for python in tried:
        try:
            if subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0:
                return python
        except OSError:
            continue
    raise CannotRun(f"needs Python {'.'.join(map(str, least))} or newer; name one by --python=PATH")


def pythons(named: list[str]) -> list[str]:
    """Where a Python may be: those named, this one, those on the path, those of pyenv."""
    installed = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/3.*/bin/python")
    numbered = [f"python3.{minor}" for minor in (13, 12, 14)]
    return [*named, sys.executable, *numbered, *sorted(map(str, installed), reverse=True)]


def environment(package: str, least: tuple[int, int], cache: pathlib.Path, tried: list[str]) -> str:
    """The Python of an environment that has `package`, made where it is missing."""
    folder = cache / package.replace("==", "-")
    python, mark = folder / "bin" / "python", folder / "installed"
    if not mark.exists():
        print(f"installing {package} in {folder}", file=sys.stderr, flush=True)
        files.make_folder(cache)
        for command in (
            [interpreter(least, tried), "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", package],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
                raise CannotRun(f"{' '.join(command[1:4])} failed: {last}")
        files.write_text(mark, package)
    return str(python)


def run_peer(python: str, runner: pathlib.Path, asked: list[dict], limit: float) -> list[dict]:
    """What a runner answered in `limit` seconds; the last line says how it ended where it did not end well."""
    with tempfile.TemporaryDirectory() as folder:
        given, answers = (pathlib.Path(folder) / name for name in ("cases.json", "answers.jsonl"))
        files.write_json(given, asked)
        answers.touch()
        command = [python, "-W", "ignore", str(runner), str(given), str(answers)]
        process = subprocess.Popen(command, env={**os.environ, **ONE_THREAD, "MPLBACKEND": "Agg"}, cwd=folder)
        late = threading.Timer(limit, process.kill)
        late.start()
        start, code = time.monotonic(), process.wait()
        late.cancel()
        lines = [line for line in answers.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    ended = [{"ended": f"ended with code {code} after {time.monotonic() - start:.0f} s"}] if code else []
    return [json.loads(line) for line in lines] + ended


def kept(folder: pathlib.Path | None, name: str, ask) -> list[dict]:
    """What `ask()` gives, or gave when it was asked before."""
    if folder is None:
        return ask()
    path = folder / f"{name.replace(' ', '-')}.json"
    if not path.exists():
        files.make_folder(folder)
        files.write_json(path, ask())
    return files.read_json(path)


def table(lines: list[dict], known: list[tuple], kind: str) -> tuple[dict[str, str], Counter]:
    """A row for each method on the cases of one kind; and the failures, counted by method and words without numbers."""
    rows, failures = {}, Counter()
    places = [i for i, (_, other, _) in enumerate(known) if other == kind]
    given = defaultdict(dict)
    for line in lines:
        if "case" in line:
            given[line["method"]][line["case"]] = line
    for method, answers in given.items():
        good = []
        for i in places:
            answer = answers.get(i, {"failure": "no answer: its process ended before"})
            if "failure" in answer:
                failures[method, _NUMBER.sub("#", answer["failure"])] += 1
            else:
                good.append((answer, known[i][2]))
        rows[method] = row(good, len(places))
    return rows, failures


def row(good: list[tuple[dict, tuple[float, float]]], count: int) -> str:
    """The answers to `count` cases beside the truth, N* and L*."""
    text = f"{len(good):4}/{count:<3}"
    pairs = [(a, truth) for a, truth in good if a["loss"] is not None]
    error = np.abs([a["loss"] / loss - 1 for a, (_, loss) in pairs])
    numbers = f"{error.mean():8.2%}{np.median(error):8.2%}{np.mean(error < 0.015):7.0%}" if pairs else ""
    text += numbers or f"{'-':>8}{'-':>8}{'-':>7}"
    sized = [abs(np.log(a["params"] / size)) < np.log(1.3) for a, (size, _) in good if a["params"]]
    text += f"{np.mean(sized):7.0%}" if sized else f"{'-':>7}"
    spans = [(a["low"] <= loss <= a["high"], (a["high"] - a["low"]) / 2 / a["loss"]) for a, (_, loss) in pairs
             if a["low"] is not None]  # fmt: skip
    text += "{:7.0%}{:8.2%}".format(*np.mean(spans, 0)) if spans else f"{'-':>7}{'-':>8}"
    return text + (f"{np.median([a['seconds'] for a, _ in good]):9.2f}" if good else f"{'-':>9}")


def tell(lines_of: dict[str, list[dict]], known: list[tuple]) -> None:
    """Prints the tables, the failures, and which questions are answered."""
    for kind in prediction.BRIEF:
        print(f"\n{kind}\n{'':50} answered     mean  median  <1.5%  N<1.3  holds   width  seconds")
        told = Counter()
        for name, lines in lines_of.items():
            rows, failures = table(lines, known, kind)
            for method, text in rows.items():
                print(f"{f'{name}, {method}':50} {text}")
            told |= Counter({(name, *key): count for key, count in failures.items()})
        for (name, method, why), count in told.items():
            print(f"  {name}, {method}: {count} not answered: {why}")
    print(f"\n{'':72}" + "".join(f"  {name}" for name in lines_of))
    for question, words in exchange.QUESTIONS.items():
        text = ""
        for name, lines in lines_of.items():
            mine = next((line for line in lines if line.get("question") == question), {})
            absent = "?" if lines and "ended" in lines[-1] else "no"  # it was stopped before it was asked
            text += f"  {'yes' if 'how' in mine else 'fails' if mine else absent:{len(name)}}"
        print(f"{words:72}{text}")


def main() -> None:
    """Asks all, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="which peers, with commas between them; empty for none"
    )
    parser.add_argument("--limit", type=float, default=5400.0, help="seconds for each peer")
    parser.add_argument("--answers", type=pathlib.Path, help="a folder to keep answers in")
    parser.add_argument("--python", action="append", default=[], help="a Python that peers may be installed for")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path(CACHE).expanduser())
    values = parser.parse_args()
    names = [name for name in values.peers.split(",") if name]
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"no peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    asked, known = cases()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines_of = {OURS: kept(values.answers, OURS, lambda: ours(asked))}
    for name in names:
        package, least, runner = PEERS[name]
        try:
            python = environment(package, least, values.cache, pythons(values.python))
        except CannotRun as why:
            print(f"{package} is left out: {why}")
            continue
        ask = functools.partial(run_peer, python, RUNNERS / runner, asked, values.limit)
        lines = lines_of[package.replace("==", " ")] = kept(values.answers, name, ask)
        if "ended" in lines[-1]:
            print(f"{package} {lines[-1]['ended']}")
    tell(lines_of, known)


if __name__ == "__main__":
    main()
