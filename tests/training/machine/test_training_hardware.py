"""The peak that utilisation is measured against."""

import types

import numpy as np

from chinchilla_jax.training.machine import hardware


def test_the_peak_is_that_of_all_devices_of_the_mesh_whichever_process_they_belong_to(monkeypatch):
    def mesh(kind, devices, per_process):
        members = [types.SimpleNamespace(device_kind=kind, process_index=i // per_process) for i in range(devices)]
        return types.SimpleNamespace(devices=np.array(members, object).reshape(2, -1))

    peak, what = hardware.peak_flops(mesh("TPU v4", 16, 4))
    assert peak == 16 * 275e12 and "published" in what
    monkeypatch.setattr(hardware, "_measured_peak", lambda: 3e10)
    peak, what = hardware.peak_flops(mesh("cpu", 8, 8))
    assert peak == 3e10 and "measured" in what
    assert hardware.peak_flops(mesh("cpu", 8, 4))[0] == 2 * 3e10
