"""Files of a study that were edited, cut off or overwritten are noticed, and named."""

import pytest

from chinchilla_jax.study.folder import MANIFEST, StudyError, read_manifest, write_manifest
from chinchilla_jax.study.plan import plan
from chinchilla_jax.study.status import status
from configs.isoflop import tiny


@pytest.fixture()
def study(tmp_path):
    write_manifest(tmp_path / MANIFEST, plan(tiny()))
    return tmp_path


@pytest.mark.parametrize("damage", [
    lambda text: text.replace('"peak_lr": ', '"peak_lr": 1', 1),
    lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    lambda text: text[:-40],
    lambda text: "[]",
    lambda text: "",
], ids=["edited", "a run cut off", "half a line", "not a manifest", "empty"])  # fmt: skip
def test_a_manifest_that_is_not_what_was_written_is_refused_by_name(study, damage):
    path = study / MANIFEST
    assert len(read_manifest(path).runs) == 24
    path.write_text(damage(path.read_text()))
    with pytest.raises(StudyError, match="manifest.jsonl"):
        read_manifest(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"loss": "x"}'])
def test_status_shows_a_damaged_result_and_the_rest(study, content):
    first = read_manifest(study / MANIFEST).runs[0].name
    (study / "runs" / first).mkdir(parents=True)
    (study / "runs" / first / "result.json").write_text(content)
    said = []
    rows = status(study, said.append)
    assert [row.state for row in rows].count("damaged") == 1 and len(rows) == 24
    assert first in said[-1] and "result.json" in said[-1]
