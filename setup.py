# SPDX-License-Identifier: Apache-2.0
"""Package definition of musiclm_jax; tool settings are in pyproject.toml."""

import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent
_VERSION = re.search(
  r'__version__ = "([^"]+)"', (_HERE / "musiclm_jax/__init__.py").read_text()
)[1]

# What generation needs; no TensorFlow.
_CORE = [
  "absl-py>=2.1",
  "flax>=0.12,<0.13",
  "gin-config>=0.5,<0.6",
  "jax>=0.10,<0.11",
  "librosa>=0.11,<0.12",
  "matplotlib>=3.9",
  "numpy>=2.0",
  "optax>=0.2.5,<0.3",
  "orbax-checkpoint>=0.12,<0.13",
  "psutil>=6.0",
  "PyYAML>=6.0",
  "safetensors>=0.5",
  "scipy>=1.13",
  # 0.2.3 refuses the protobuf that apache-beam needs (docs/architecture.md).
  "sentencepiece>=0.2.0,<0.2.3",
  "soundfile>=0.13",
  "soxr>=0.5",
  "tokenizers>=0.23,<0.24",
  "tqdm>=4.66",
]
_TRAIN = [
  "array_record>=0.8",
  "clu>=0.0.12",
  "seqio>=0.0.20,<0.1",
  "tensorboard>=2.20,<2.22",
  "tensorflow>=2.20,<2.22",
  "tensorflow-datasets>=4.9.8,<5",
]
_DEMO = [
  "music21>=9.5,<11",
  "pretty_midi>=0.2.11,<0.3",
  # 0.6.0 does not return arrays from its synthesizer.
  "symusic>=0.5.8,<0.6",
]
_DEV = ["pytest>=8.3", "pytest-xdist>=3.8", "ruff>=0.12"]
_STUDIO = ["gradio>=6.31,<7", "uvicorn>=0.54"]
_BEAM = ["apache-beam>=2.70", "mlcroissant>=1.0"]

# Folders of the shipped gin files; no Python in them.
_GIN_PACKAGES = ["musiclm_jax_gin"] + [
  f"musiclm_jax_gin.{path.name}"
  for path in sorted((_HERE / "gin").iterdir())
  if path.is_dir()
]

_LIBTPU = "libtpu; platform_system == 'Linux' and platform_machine == 'x86_64'"

setuptools.setup(
  name="musiclm_jax",
  version=_VERSION,
  description="MusicLM in JAX: train, run and evaluate text-to-music on TPU",
  long_description=(_HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=[
    *setuptools.find_packages(include=["musiclm_jax", "musiclm_jax.*"]),
    # Outside a checkout, corpus builders and gin files lie here.
    "musiclm_jax_builders",
    "musiclm_jax_builders.audio_folder",
    "musiclm_jax_builders.melody_pairs",
    "musiclm_jax_builders.prompts",
    "musiclm_jax_builders.score_corpus",
    *_GIN_PACKAGES,
  ],
  package_dir={
    "musiclm_jax_builders": "data",
    "musiclm_jax_gin": "gin",
  },
  package_data={
    "": ["*.md", "*.gin", "*.jsonl"],
    # The page for raters, copied into each listening test.
    "musiclm_jax.evaluation": ["listening_assets/*"],
  },
  install_requires=_CORE,
  extras_require={
    "train": _TRAIN,
    "demo": _DEMO,
    "beam": _BEAM,
    # `musiclm check` compiles for TPUs on any machine that libtpu is made for.
    "check": [_LIBTPU],
    "tpu": [_LIBTPU],
    "cuda": ["jax[cuda12]>=0.10,<0.11"],
    # `musiclm studio`.
    "studio": _STUDIO,
    "dev": _DEV,
    "all": [*_TRAIN, *_DEMO],
  },
  entry_points={"console_scripts": ["musiclm=musiclm_jax.cli.main:start"]},
)
