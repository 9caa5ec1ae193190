# SPDX-License-Identifier: Apache-2.0
"""Pure functions over a step function and its cache."""
