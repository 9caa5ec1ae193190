# SPDX-License-Identifier: Apache-2.0
"""Plain data and pure functions: token streams, stage layouts, artefacts."""
