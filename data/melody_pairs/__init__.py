# SPDX-License-Identifier: Apache-2.0
"""Melodies of the demo corpus, each in many versions."""
