"""Runs on a host that trains: gets its environment ready, starts a worker apart from the connection, says how it is.

    python3 launch/host.py setup EXTRA             the environment .venv of this checkout, with chinchilla_jax[EXTRA]
    python3 launch/host.py start NUMBER WORD...    start NUMBER of the command; once, however often this is called
    python3 launch/host.py poll                    one line of JSON: the newest start, its exit code, the end of its log
    python3 launch/host.py stop SECONDS            SIGTERM, and after so many seconds SIGKILL

Needs nothing but Python 3.8. `gcloud ... ssh` calls a command again when the connection is lost, so `start` must not
start twice. What is known of a start lies in .launch/ of the checkout: started-N, with the process and the boot it
belongs to; log-N; code-N, the exit code, written last.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STATE = ROOT / ".launch"
MARK = "chinchilla_jax-host: "
KILLED = 137
TAIL_LINES, TAIL_BYTES = 15, 8192


def setup(extra=""):
    if not os.path.exists(ROOT / ".venv" / "bin" / "python") and sys.version_info < (3, 11):
        # Images of TPU VMs come with an older Python.
        newer = ["uv", "venv", "--quiet", "--seed", "--python=3.12", ".venv"]
        for words in (["pip", "install", "--quiet", "--user", "uv"], newer):
            subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)
    extras = f"[{extra}]" if extra else ""
    return subprocess.run(["bash", "-c", '. launch/venv.sh && make_venv "$1"', "setup", extras], cwd=ROOT).returncode


def start(number, words):
    STATE.mkdir(exist_ok=True)
    if running(newest()):
        return 0
    try:
        with open(STATE / f"started-{number}", "x") as file:
            log = open(STATE / f"log-{number}", "ab")  # noqa: SIM115  the worker keeps it
            waiter = [sys.executable, str(ROOT / "launch" / "host.py"), "wait", number, *words]
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(waiter, cwd=ROOT, start_new_session=True, **streams)
            json.dump({"pid": process.pid, "boot": boot()}, file)
    except FileExistsError:
        pass
    return 0


def wait(number, words):
    """Between `start` and the worker: passes SIGTERM on, and writes its exit code."""
    process = subprocess.Popen(words, cwd=ROOT)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    temporary = STATE / f".code-{number}"
    temporary.write_text(str(code))
    os.replace(temporary, STATE / f"code-{number}")
    return 0


def poll():
    number = newest()
    said = {"host": socket.gethostname(), "start": number, "code": None, "running": running(number), "tail": []}
    if number:
        code = STATE / f"code-{number}"
        said["code"] = int(code.read_text()) if code.exists() else None if said["running"] else KILLED
        with open(STATE / f"log-{number}", "rb") as log:
            log.seek(max(0, log.seek(0, 2) - TAIL_BYTES))
            said["tail"] = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    # In one write: outputs of several hosts are mixed.
    os.write(1, f"{MARK}{json.dumps(said)}\n".encode())
    return 0


def stop(seconds):
    number = newest()
    if not running(number):
        return 0
    pid = json.loads((STATE / f"started-{number}").read_text())["pid"]
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + float(seconds)
    while running(number) and time.monotonic() < until:
        time.sleep(0.2)
    if running(number):
        os.killpg(pid, signal.SIGKILL)
    return 0


def newest():
    return max((int(path.name[8:]) for path in STATE.glob("started-*")), default=0)


def running(number):
    try:
        started = json.loads((STATE / f"started-{number}").read_text())
    except (FileNotFoundError, ValueError):
        return False
    if started["boot"] != boot() or (STATE / f"code-{number}").exists():
        return False
    try:
        # Not a process that has ended and that nobody waited for.
        return pathlib.Path(f"/proc/{started['pid']}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def boot():
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def main(what, *words):
    if what in ("start", "wait"):
        return globals()[what](words[0], list(words[1:]))
    return {"setup": setup, "poll": poll, "stop": stop}[what](*words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
