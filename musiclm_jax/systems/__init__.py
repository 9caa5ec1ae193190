# SPDX-License-Identifier: Apache-2.0
"""Frozen parts composed: tokenizers and MusicLM."""
