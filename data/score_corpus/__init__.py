# SPDX-License-Identifier: Apache-2.0
"""The demo corpus: public-domain scores in rendered arrangements."""
