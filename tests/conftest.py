# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests; read before any of them imports jax.

Most of the suite's time is XLA compiling programs that run once, so it
compiles with little effort.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
  ]
).strip()
