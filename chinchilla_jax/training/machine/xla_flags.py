"""What is the compiler told about a train step, besides the program?"""

from __future__ import annotations

# XLA gathers the next weights, and rows split over the tensor axis, while it computes; by default it waits for most of
# them. What this changes in a program: `preflight` counts asynchronous collectives apart.
_TPU = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}
# Of attention on a context axis. On a grid of two sides the compiler refuses it where an axis is part of a side.
_TORUS = {"xla_tpu_enable_async_all_to_all": "true"}
_TORUS_KINDS = ("TPU v4", "TPU v5", "TPU v5p")


def step_options(device_kind: str) -> dict[str, str] | None:
    """Options for `jax.jit` of a train step for a kind of device, as `device.device_kind` names it."""
    if not device_kind.startswith("TPU"):
        return None
    return _TPU | (_TORUS if device_kind in _TORUS_KINDS else {})
