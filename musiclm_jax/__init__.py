# SPDX-License-Identifier: Apache-2.0
"""musiclm_jax: MusicLM and its relatives in JAX, from audio to audio.

Import modules, not this package: `from musiclm_jax.systems import musiclm`.
"""

__version__ = "0.1.0"
