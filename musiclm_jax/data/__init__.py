# SPDX-License-Identifier: Apache-2.0
"""seqio tasks, sources and the token cache; the only user of TensorFlow."""
