# SPDX-License-Identifier: Apache-2.0
"""Waveforms: files, framing, spectrograms, loudness."""
