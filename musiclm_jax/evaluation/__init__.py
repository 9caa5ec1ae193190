# SPDX-License-Identifier: Apache-2.0
"""One metric per file, the runner and the report page."""
