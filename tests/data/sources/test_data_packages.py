"""Text of packages: the real package is found behind the one that only depends on it."""

from chinchilla_jax.data.sources import packages


def test_apt_depends_names_the_real_package(tmp_path, monkeypatch):
    class Result:
        returncode, stdout = 0, "linux-doc\n  Depends: linux-doc-6.1\n  Suggests: other\n"

    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: Result)
    assert packages._real_name(packages.DEBIAN_TEXTS[1]) == "linux-doc-6.1"
    assert packages._real_name(packages.DEBIAN_TEXTS[0]) == "dict-gcide"
