# SPDX-License-Identifier: Apache-2.0
"""The only place that knows devices: axes, rules, mesh, partitioner."""
