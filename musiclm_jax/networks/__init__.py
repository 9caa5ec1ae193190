# SPDX-License-Identifier: Apache-2.0
"""Arrays in, arrays out: one network per file."""
