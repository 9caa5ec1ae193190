# SPDX-License-Identifier: Apache-2.0
"""The RVQ of MuLan's embedding: levels, and the same on any mesh."""

import pathlib

import jax
import numpy as np
import pytest
import virtual_devices

from musiclm_jax.core import errors, rvq
from musiclm_jax.layers import mesh_kmeans
from musiclm_jax.systems import mulan_rvq, text_mapper

_HERE = pathlib.Path(__file__).parent


def _points(count=64):
  points = np.random.default_rng(0).normal(size=(count, 16))
  return text_mapper.unit(points).astype(np.float32)


def test_error_shrinks_level_by_level_on_host_and_mesh():
  points = _points()
  mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
  config = mesh_kmeans.MeshKMeansConfig(8)
  ids = np.arange(len(points))
  errors_left = []
  for codebooks in (
    mulan_rvq.fit(points, 3, 8, jax.random.key(0)),
    mulan_rvq.fit_on_mesh(points, ids, 3, config, mesh),
  ):
    assert codebooks.shape == (3, 8, 16)
    codes = rvq.encode(points, codebooks)
    error = [
      ((points - rvq.decode(codes[:, :levels], codebooks)) ** 2).mean()
      for levels in (1, 2, 3)
    ]
    assert (points**2).mean() > error[0] > error[1] > error[2]
    errors_left.append(error[2])
  assert abs(errors_left[0] - errors_left[1]) < 0.25 * errors_left[0]
  with pytest.raises(errors.UserError, match="codebook_size=8"):
    mulan_rvq.fit(points[:7], 2, 8, jax.random.key(0))
  with pytest.raises(errors.UserError, match="codebook_size=8"):
    mulan_rvq.fit_on_mesh(points[:7], ids[:7], 2, config, mesh)


def test_one_and_eight_devices_give_the_same_codebooks():
  found = virtual_devices.run(_HERE / "mulan_rvq_on_meshes.py")
  assert found["num_devices"] == 8
  assert found["8"] == found["1"] == found["3, in another order"]
  assert found["another seed"] != found["1"]
