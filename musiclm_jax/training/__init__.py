# SPDX-License-Identifier: Apache-2.0
"""State, optimizers, steps, loop, checkpoints, metrics."""
