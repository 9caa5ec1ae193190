# SPDX-License-Identifier: Apache-2.0
"""Bring your own audio: any tree of files as a corpus."""
