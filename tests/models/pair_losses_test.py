# SPDX-License-Identifier: Apache-2.0
"""Pair losses against numpy on one device, against float64 on meshes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pair_reference
import pytest
import virtual_devices

from musiclm_jax.models import pair_losses

_HERE = pathlib.Path(__file__).parent
# Compiled as a whole: each operation by itself takes far longer.
_pair_losses = jax.jit(pair_losses.pair_losses, static_argnums=(5, 6))


def _run(kind):
  return virtual_devices.run(_HERE / "pair_losses_on_meshes.py", kind)


def _numpy_losses(similarity, ids, loss):
  size = len(similarity)
  out = []
  for i in range(size):
    other = [j for j in range(size) if ids[j] != ids[i]]
    row = np.array([similarity[i, j] for j in other])
    column = np.array([similarity[j, i] for j in other])
    own = similarity[i, i]
    if loss == "mulan":
      negatives = np.exp(row).sum() + np.exp(column).sum()
      out.append(-np.log(np.exp(own) / negatives) if other else 0.0)
    elif loss == "infonce":
      parts = [
        np.exp(own) / (np.exp(own) + np.exp(x).sum()) for x in (row, column)
      ]
      out.append(-np.log(parts).mean())
    else:
      apart = np.log(1 + np.exp(row)).sum() + np.log(1 + np.exp(column)).sum()
      out.append(np.log(1 + np.exp(-own)) + apart / 2)
  return np.array(out)


def _small(ids):
  generator = np.random.default_rng(0)
  audio, text = generator.normal(size=(2, len(ids), 4)).astype(np.float32)
  return audio, text, np.asarray(ids)[:, None]


@pytest.mark.parametrize("loss", pair_losses.LOSSES)
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 1, 2, 1, 4]])
def test_chunks_equal_numpy(loss, ids):
  audio, text, columns = _small(ids)
  similarity = 1.5 * audio @ text.T - 0.5
  expected = _numpy_losses(similarity, ids, loss)
  for chunk in (2, 100):
    found = _pair_losses(audio, text, columns, 1.5, -0.5, loss, chunk)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    equal = np.equal.outer(ids, ids)
    np.testing.assert_array_equal(found.num_negatives, (~equal).sum(1))
    rows = np.arange(5)
    hits = equal[rows, similarity.argmax(1)], equal[similarity.argmax(0), rows]
    np.testing.assert_array_equal((found.hit_text, found.hit_audio), hits)
    above = ~equal & (similarity > np.diagonal(similarity)[:, None])
    np.testing.assert_array_equal(found.rank_text, above.sum(1))
    above = ~equal & (similarity > np.diagonal(similarity)[None])
    np.testing.assert_array_equal(found.rank_audio, above.sum(0))
  # And the reference of the test on meshes.
  other = pair_reference.losses(audio, text, 1.5, -0.5, columns, loss)
  np.testing.assert_allclose(other, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("loss", "bias", "chance"),
  [
    ("mulan", 0.0, np.log(14)),
    ("infonce", 0.0, np.log(8)),
    # The best bias makes every pair a match with probability 1 / 8.
    ("sigmoid", -np.log(7) - 3, np.log(8) + 7 * np.log(8 / 7)),
  ],
)
def test_constant_encoder_is_at_chance(loss, bias, chance):
  same = np.tile(np.eye(1, 4, dtype=np.float32), (8, 1))
  found = _pair_losses(same, same, np.arange(8)[:, None], 3.0, bias, loss, 3)
  np.testing.assert_allclose(found.loss, chance, rtol=1e-5)
  expected = pair_losses.chance_losses(found.num_negatives, loss)
  np.testing.assert_allclose(expected, chance, rtol=1e-5)
  # Neither best nor worst: it has found nothing.
  np.testing.assert_array_equal(found.rank_text, 3.5)


def test_a_batch_of_one_text_teaches_nothing():
  audio, text, ids = _small([7, 7, 7])
  for loss in ("mulan", "infonce"):
    (value, found), gradients = jax.value_and_grad(
      lambda *x, loss=loss: (
        (out := _pair_losses(*x, ids, 100.0, 0.0, loss)).loss.sum(),
        out,
      ),
      (0, 1),
      has_aux=True,
    )(audio, text)
    chance = pair_losses.chance_losses(found.num_negatives, loss)
    for array in (value, chance, *gradients):
      np.testing.assert_allclose(array, 0.0, atol=1e-4)


def test_equal_texts_far_more_similar_than_negatives_do_not_overflow():
  audio = np.eye(3, dtype=np.float32)
  audio[1] = audio[0]
  text, ids = audio.copy(), np.array([[5], [5], [6]])
  for loss in pair_losses.LOSSES:
    gradients = jax.grad(
      lambda *x, loss=loss: _pair_losses(*x, ids, 1000.0, 0.0, loss).loss.sum(),
      (0, 1),
    )(audio, text)
    assert all(jnp.isfinite(g).all() for g in gradients), loss


@pytest.mark.parametrize("loss", pair_losses.LOSSES)
def test_absent_rows_change_nothing(loss):
  audio, text, ids = _small([0, 1, 2, 1, 4, 5, 6])
  present = np.array([True, False, True, True, False, True, True])
  # Whatever an empty text is embedded as.
  text[1], audio[4] = 100.0, 0.0

  def run(audio, text, ids, present):
    def total(audio, text, scale, bias):
      found = pair_losses.pair_losses(
        audio, text, ids, scale, bias, loss, 2, present
      )
      chance = pair_losses.chance_losses(found.num_negatives, loss, present)
      return found.loss.sum(), (found, chance)

    return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))(
      audio, text, 1.5, -0.5
    )

  (value, found), gradients = run(audio, text, ids, jnp.asarray(present))
  kept = [x[present] for x in (audio, text, ids)]
  (expected, of_kept), slopes = run(*kept, None)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  places = np.flatnonzero(present)  # In the whole batch, of kept rows.
  (found, chance), (of_kept, chance_of_kept) = found, of_kept
  of_kept = of_kept._replace(
    nearest_text=places[of_kept.nearest_text],
    nearest_audio=places[of_kept.nearest_audio],
  )
  for array, other in zip(
    (*found, chance), (*of_kept, chance_of_kept), strict=True
  ):
    np.testing.assert_allclose(array[present], other, rtol=1e-6)
    assert not np.asarray(array)[~present].any()
  for array, other in zip(gradients[:2], slopes[:2]):
    np.testing.assert_allclose(array[present], other, rtol=1e-5, atol=1e-7)
    assert not np.asarray(array)[~present].any()
  np.testing.assert_allclose(gradients[2:], slopes[2:], rtol=1e-5, atol=1e-7)
  (value, _), gradients = run(audio, text, ids, jnp.zeros(7, bool))
  assert value == 0.0 and not any(np.asarray(g).any() for g in gradients)


def test_every_mesh_gives_value_and_gradients_of_the_whole_matrix():
  results = _run("pairs")
  assert len(results) == 4
  ranks = {tuple(r["ranks"]) for of in results.values() for r in of.values()}
  hits = {tuple(r["hits"]) for of in results.values() for r in of.values()}
  nearest = [r["nearest"] for of in results.values() for r in of.values()]
  example = pair_reference.example()
  expected = (example["audio"] @ example["text"].T).argmax(1).tolist()
  assert all(found == expected for found in nearest)
  # Ranks depend neither on mesh nor loss.
  assert len(ranks) == len(hits) == 1 and max(*ranks) > 0
  for name, of_mesh in results.items():
    for loss, result in of_mesh.items():
      assert max(result["errors"].values()) < 1e-5, (name, loss, result)
      assert result["square"] == [], (name, loss)
      # Nothing is as large as the matrix, under whatever shape.
      assert result["widest"] < pair_reference.PAIRS**2, (name, loss)


def test_bad_arguments_are_named():
  audio, text, ids = _small([0, 1, 2])
  with pytest.raises(ValueError, match="loss='clip'"):
    pair_losses.pair_losses(audio, text, ids, 1.0, 0.0, "clip")
  with pytest.raises(ValueError, match="chunk=0"):
    pair_losses.pair_losses(audio, text, ids, 1.0, 0.0, "mulan", 0)
  with pytest.raises(ValueError, match=r"text \(2, 4\)"):
    pair_losses.pair_losses(audio, text[:2], ids, 1.0)


def test_microbatches_keep_the_negatives_of_the_batch():
  for loss, runs in _run("train").items():
    one, parts = runs["one"], runs["8 devices, 4 parts"]
    for name, value in one["metrics"].items():
      np.testing.assert_allclose(
        parts["metrics"][name], value, rtol=1e-4, atol=1e-5, err_msg=name
      )
    scale = max(np.abs(x).max() for x in one["moved"].values())
    for name, moved in one["moved"].items():
      np.testing.assert_allclose(
        parts["moved"][name], moved, atol=1e-4 * scale, err_msg=name
      )
    bias = [name for name in one["moved"] if "similarity_bias" in name]
    assert len(bias) == (loss == "sigmoid")
