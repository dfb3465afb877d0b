"""Eight emulated CPU devices for every test, set before JAX first looks for devices."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)
