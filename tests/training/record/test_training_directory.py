"""Whose is a run directory?"""

import json

from chinchilla_jax.training.record.directory import check_directory
from chinchilla_jax.training.stages import Course, Stage


def test_other_cores_may_go_on_and_are_told(small, tmp_path):
    there = {"config": small.to_dict(), "hash": small.content_hash()}
    for recorded, said in (({"cores": 2}, ["cores: 2 there, 1 here"]), ({"cores": 1}, []), ({}, [])):
        lines = []
        (tmp_path / "config.json").write_text(json.dumps(there | recorded))
        check_directory(Course(Stage(small)), tmp_path, lines.append, cores=1)
        assert lines == [f"{line}: the numbers will agree to rounding and not to the bit" for line in said]
