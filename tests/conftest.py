# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests; read before any of them imports jax."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
