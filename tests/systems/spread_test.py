# SPDX-License-Identifier: Apache-2.0
"""Codes are the same on 1 and on 8 devices, however they are asked for."""

import pathlib

import virtual_devices

_HERE = pathlib.Path(__file__).parent
# Programs run a few times: little effort is spent on compiling them. Without
# the emitters it takes half as long.
_FLAGS = (
  "--xla_cpu_use_fusion_emitters=false "
  "--xla_backend_optimization_level=0 "
  "--xla_llvm_disable_expensive_passes=true"
)


def test_one_and_eight_devices_make_the_same_codes_in_every_mode():
  found = virtual_devices.run(_HERE / "modes_on_8_devices.py", flags=_FLAGS)
  assert found["num_devices"] == 8
  # 9 and 5 modes of the stages, 5 and 5 of each back end.
  assert len(found["modes"]) == 14 + 2 * 10
  for name, (is_equal, num_codes) in found["modes"].items():
    assert is_equal and num_codes > 3, name
