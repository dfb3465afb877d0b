"""Eight emulated CPU devices for every test, set before JAX first looks for devices; programs that compile quickly."""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the time of most tests, and shapes this small gain nothing from optimised machine code. In the
# environment, so that processes which tests start do the same. The TPU compiler makes the same program with it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax

if jax.__version_info__[:2] == (0, 10):
    # The older of two code generators, which takes half the time; jax 0.12 no longer has it.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
jax.config.update("jax_num_cpu_devices", 8)
# Tracing makes many objects that stay: looking through them for garbage took a tenth of the time.
gc.set_threshold(100_000, 50, 100)
