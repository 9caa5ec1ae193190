# SPDX-License-Identifier: Apache-2.0
"""Network plus loss: what the training loop trains."""
