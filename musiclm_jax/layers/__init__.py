# SPDX-License-Identifier: Apache-2.0
"""Linen blocks that networks are made of."""
