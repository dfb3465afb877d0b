"""Plays `gcloud compute tpus queued-resources` in a folder, FAKE_GCLOUD: resources move on whenever they are listed.

plan.json says what is to happen; all of it may be left out:
    states    {NAME: [state at the first list, at the second, ...]}; the last one stays
    refuse    {NAME: text}: `create` fails with it
    failed    {NAME: text}: why it is FAILED
    dies_at   {NAME: "scp" or a word of a command}: there it is SUSPENDED, and the command fails
    silent    [NAME]: no host answers
    twice     a word: commands with it are run again, as gcloud does when a connection is lost
Hosts are folders, hosts/NAME/I. calls.jsonl has every call. A machine whose time has come takes its processes along.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

HERE = pathlib.Path(os.environ["FAKE_GCLOUD"])
STATES = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
PLAN = json.loads((HERE / "plan.json").read_text()) if (HERE / "plan.json").exists() else {}


def refuse(verb, text):
    print(f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) {text}", file=sys.stderr)
    sys.exit(1)


def read(name):
    path = HERE / f"{name}.resource"
    return json.loads(path.read_text()) if path.exists() else None


def write(name, resource):
    temporary = HERE / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(resource))
    os.replace(temporary, HERE / f"{name}.resource")


def state(name, resource):
    states = PLAN.get("states", {}).get(name, STATES)
    return resource.get("fixed") or states[min(resource["listed"], len(states)) - 1 if resource["listed"] else 0]


def power_off(name):
    """Ends what runs on the machines, and takes the machines away."""
    for started in (HERE / "hosts" / name).glob("*/*/.launch/started-*"):
        try:
            os.killpg(json.loads(started.read_text())["pid"], signal.SIGKILL)
        except (ProcessLookupError, ValueError):
            pass
    shutil.rmtree(HERE / "hosts" / name, ignore_errors=True)


def create(name, options):
    if text := PLAN.get("refuse", {}).get(name):
        refuse("create", text)
    try:
        with open(HERE / f"{name}.resource", "x") as file:
            json.dump(
                {"listed": 0, "type": options["accelerator-type"], "nodes": int(options.get("node-count", 1))}, file
            )
    except FileExistsError:
        refuse("create", f"ALREADY_EXISTS: Resource '{name}' already exists")


def list_(options):
    told = []
    for path in sorted(HERE.glob("*.resource")):
        name, resource = path.stem, read(path.stem)
        if resource is None:
            continue
        resource["listed"] += 1
        write(name, resource)
        now = state(name, resource)
        if now in ("SUSPENDED", "FAILED"):
            power_off(name)
        about = {"state": now}
        if now == "FAILED":
            about["failedData"] = {"error": {"code": 8, "message": PLAN.get("failed", {}).get(name, "?")}}
        told.append({"name": f"projects/p/locations/z/queuedResources/{name}", "state": about})
    print(json.dumps(told))


def delete(name, options):
    if read(name) is None:
        refuse("delete", f"NOT_FOUND: Resource '{name}' was not found")
    power_off(name)
    (HERE / f"{name}.resource").unlink()


def hosts(verb, name, doing):
    """The folders of its machines, if it has any."""
    resource = read(name) or refuse(verb, f"NOT_FOUND: {name}")
    word = PLAN.get("dies_at", {}).get(name)
    if word and word in doing:
        write(name, resource | {"fixed": "SUSPENDED"})
    if state(name, read(name)) != "ACTIVE":
        refuse(verb, f"{name} has terminal state PREEMPTED, so it cannot be used anymore")
    if name in PLAN.get("silent", ()):
        refuse(verb, "Connection timed out")
    kind, _, size = resource["type"].partition("-")
    count = resource["nodes"] * max(1, int(size) // (4 if kind.startswith("v5lite") else 8))
    for i in range(count):
        (folder := HERE / "hosts" / name / str(i)).mkdir(parents=True, exist_ok=True)
        yield folder


def ssh(name, options):
    command, code = options["command"], 0
    for i, folder in enumerate(hosts("ssh", name, command)):
        for _ in range(2 if PLAN.get("twice", "\n") in command else 1):
            environment = os.environ | {"HOME": str(folder), "HOST": str(i)}
            code = subprocess.run(["sh", "-c", command], cwd=folder, env=environment).returncode or code
    sys.exit(code)


def scp(source, target, options):
    name, _, path = target.partition(":")
    for folder in hosts("scp", name, "scp"):
        shutil.copy(source, folder / path)


def main():
    words = sys.argv[1:]
    assert words[:3] == ["compute", "tpus", "queued-resources"], words
    with open(HERE / "calls.jsonl", "a") as file:
        file.write(json.dumps(words[3:]) + "\n")
    plain = [word for word in words[4:] if not word.startswith("--")]
    options = dict(
        re.fullmatch(r"--([a-z-]+)=?(.*)", word, re.S).groups() for word in words[4:] if word.startswith("--")
    )
    assert options["zone"]
    {"create": create, "list": list_, "delete": delete, "ssh": ssh, "scp": scp}[words[3]](*plain, options)


main()
