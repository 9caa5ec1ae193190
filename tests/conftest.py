# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests; read before any of them imports jax."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the time of these tests is XLA compiling for the CPU. Without its new
# emitters of fusions that takes a quarter to nearly half less.
os.environ["XLA_FLAGS"] = (
  f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"
)

# Their programs are large and run a few times: nearly all of their time is
# XLA's. With little effort it takes a third less.
_COMPILED_QUICKLY = (
  "layers",
  "networks",
  "candidates_test.py",
  "generate_test.py",
  "depthwise_lm_test.py",
  "depthwise_test.py",
  "soundstorm_test.py",
  "acoustic_backends_test.py",
  "masked_test.py",
  "continuous_batching_test.py",
  "bulk_test.py",
  "evaluate_prompts_test.py",
  "exported_stage_test.py",
  "contrastive_test.py",
  "melody_test.py",
  "memorization_test.py",
  "musiclm_test.py",
  "bench_decode_test.py",
)

# Verbs and loaded artefacts jit anew what a test before them has compiled:
# their tests find it on disk. Not where tests look at compiled programs.
_COMPILED_ONCE = ("cli", "evaluation", "models", "systems")
_MIN_COMPILE_SECS = 0.2

# Longer than any file after it, so it must not be what the end waits for.
_FIRST = "quickstart_test.py"


def pytest_collection_modifyitems(items):
  """Puts the longest file first; the order within files stays."""
  items.sort(key=lambda item: item.path.name != _FIRST)


def _is_in(request, places):
  return bool({request.path.parent.name, request.path.name} & set(places))


@pytest.fixture(autouse=True, scope="module")
def compile_quickly(request):
  """Compiles with little effort where programs hardly run."""
  if not _is_in(request, _COMPILED_QUICKLY):
    yield
    return
  import jax

  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def compiled_dir(tmp_path_factory):
  """Compiled programs of one test process, for this run of the tests."""
  return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True, scope="module")
def compile_once(request, compiled_dir):
  """Compiles equal programs of tests of this process once."""
  if not _is_in(request, _COMPILED_ONCE):
    yield
    return
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  settings = {
    "jax_compilation_cache_dir": str(compiled_dir),
    "jax_persistent_cache_min_compile_time_secs": _MIN_COMPILE_SECS,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  compilation_cache.reset_cache()  # jax looks at the folder once.
  for name, value in settings.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
