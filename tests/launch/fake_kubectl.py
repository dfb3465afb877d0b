"""Plays `kubectl` in a folder, FAKE_KUBECTL: JobSets are files, and their statuses move on whenever they are asked for.

plan.json, all of which may be left out:
    statuses  {NAME: [status at the first `get`, at the second, ...]}; the last one stays. `finish` in a status are
              results that are written then, {PATH: RESULT}
    refuse    text with which `apply` fails
    workloads what `get workloads.kueue.x-k8s.io` says
"""

import json
import os
import pathlib
import sys

import yaml

HERE = pathlib.Path(os.environ["FAKE_KUBECTL"])
PLAN = json.loads((HERE / "plan.json").read_text()) if (HERE / "plan.json").exists() else {}


def apply():
    spec = yaml.safe_load(sys.stdin)
    if "refuse" in PLAN:
        sys.exit(f"error: {PLAN['refuse']}")
    path = HERE / f"{spec['metadata']['name']}.jobset"
    path.write_text(json.dumps({"spec": spec, "asked": 0}))


def get(kind):
    if kind.startswith("workloads"):
        print(json.dumps({"items": PLAN.get("workloads", [])}))
        return
    items = []
    for path in sorted(HERE.glob("*.jobset")):
        kept = json.loads(path.read_text())
        statuses = PLAN.get("statuses", {}).get(path.stem, [{}])
        status = statuses[min(kept["asked"], len(statuses) - 1)]
        for target, result in status.get("finish", {}).items():
            pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(target).write_text(json.dumps(result))
        path.write_text(json.dumps(kept | {"asked": kept["asked"] + 1}))
        items.append({"metadata": kept["spec"]["metadata"], "status": status})
    print(json.dumps({"items": items}))


def main():
    words = sys.argv[1:]
    with open(HERE / "calls.jsonl", "a") as file:
        file.write(json.dumps(words[1:]) + "\n")
    assert words[0].startswith("--namespace=")
    if words[1] == "apply":
        apply()
    elif words[1] == "get":
        get(words[2])
    elif words[1:3] == ["delete", "jobset"]:
        (HERE / f"{words[3]}.jobset").unlink(missing_ok=True)
    else:
        assert words[1:3] == ["delete", "jobsets"] and words[3].startswith("--selector=chinchilla-jax/job=")
        for path in HERE.glob("*.jobset"):
            path.unlink()


main()
