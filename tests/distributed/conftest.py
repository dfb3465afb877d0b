"""Hosts that are processes of this machine, and a run small enough for them."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.data import prepare

HOST = pathlib.Path(__file__).parent / "host.py"
MODEL = ModelConfig(n_layers=2, d_model=16, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=32, vocab_size=512)


def on(config: RunConfig, *mesh: int) -> RunConfig:
    """The config on another mesh: devices along `data`, `fsdp`, `tensor` and `context`."""
    return dataclasses.replace(config, mesh=MeshConfig(*mesh))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """100 steps of 8 sequences; logs every 2, evaluates at 60 and at the end, saves every 5."""
    data = DataConfig(source="shipped", data_dir=str(tmp_path_factory.mktemp("data")), vocab_size=512, seq_len=32)
    prepare(data, lambda line: None)
    train = TrainConfig(train_tokens=100 * 8 * 32, batch_size=8, microbatches=2, log_every=2, eval_every=60,
                        eval_sequences=16, checkpoint_every=5)  # fmt: skip
    return RunConfig(MODEL, OptimizerConfig(peak_lr=1e-3, warmup_steps=3), data, MeshConfig(1, 4, 1), train)


@dataclasses.dataclass
class Ended:
    """How a host ended, and which rows it built: `{"first", "n", "rows": {number: hash}}` a batch."""

    code: int
    errors: str
    record: pathlib.Path


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder of compiled programs, for the hosts of all launches."""
    folder = tmp_path_factory.mktemp("compiled")
    return {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}  # fmt: skip


@pytest.fixture
def launch(compiled, tmp_path):
    """`launch(config, workdir, hosts, {1: "killed 7"}, flags={1: [...]})`: hosts with their mishaps, all ended."""
    started = []

    def start(config, workdir, hosts, mishaps=None, flags=None, environment=None, timeout=240):
        """The mishaps and further flags are those of hosts by number; the environment is that of all."""
        folder = tmp_path / f"launch{len(started)}"
        folder.mkdir()
        file = folder / "config.py"
        file.write_text(f"import ml_collections\n\n\ndef get_config():\n"
                        f"    return ml_collections.ConfigDict({config.to_dict()!r})\n")  # fmt: skip
        command = ["train", f"--config={file}", f"--workdir={workdir}"]
        devices = {"JAX_NUM_CPU_DEVICES": str(max(1, config.mesh.size // hosts))}
        return run_command(folder, command, hosts, mishaps or {}, flags or {}, devices | (environment or {}), timeout)

    def run_command(folder, command, hosts, mishaps, flags, environment, timeout=240):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        processes, variables = [], os.environ | compiled | environment
        for host in range(hosts):
            words = [sys.executable, str(HOST), str(folder / f"record{host}"), mishaps.get(host, "none"), "--",
                     *command, f"--coordinator=localhost:{port}", f"--processes={hosts}", f"--process={host}",
                     "--peer_timeout=10", "--join_timeout=60", *flags.get(host, [])]  # fmt: skip
            with (folder / f"errors{host}").open("w") as errors, (folder / f"output{host}").open("w") as output:
                processes.append(subprocess.Popen(words, env=variables, stdout=output, stderr=errors))
        started.extend(processes)
        return [Ended(process.wait(timeout), (folder / f"errors{host}").read_text(), folder / f"record{host}")
                for host, process in enumerate(processes)]  # fmt: skip

    start.command = run_command
    yield start
    for process in started:
        process.kill()  # the hosts behind it go with it


@pytest.fixture
def said():
    """An `echo`, and in `.text` what it was told."""

    class Said:
        text = ""

        def __call__(self, line: str) -> None:
            self.text += line + "\n"

    return Said()
