# SPDX-License-Identifier: Apache-2.0
"""VGGish, YAMNet and TRILL, with SavedModels that have their signatures.

Spectrograms of the small models are made by TensorFlow's own operations, so
they also check `audio/vggish_mel.py`.
"""

import listener_contract
import numpy as np
import pytest

from musiclm_jax.audio import vggish_mel
from musiclm_jax.cli import embedder_specs
from musiclm_jax.core import errors
from musiclm_jax.evaluation import published_weights

CLASSES = ("Speech", "Guitar", "Drum, kick")
WIDTH = 6


def _spectrogram(tf, waveform):
  """`[samples]` to `[frames, 64]` as YAMNet's features have it."""
  stft = tf.signal.stft(waveform, 400, 160, 512)
  matrix = tf.signal.linear_to_mel_weight_matrix(64, 257, 16000, 125.0, 7500.0)
  return tf.math.log(tf.matmul(tf.abs(stft), matrix) + 0.01)


def _write(tf, root):
  """Writes the small models; `root/NAME` each."""
  generator = np.random.default_rng(0)

  def kernel(width):
    value = generator.normal(size=(96 * 64, width)) / 50
    return tf.Variable(value.astype(np.float32))

  def make(shape, answer, is_callable):
    """A module whose `__call__`, or only whose signature, is `answer`."""
    signature = [tf.TensorSpec(shape, tf.float32, name="waveform")]
    call = tf.function(
      lambda self, waveform: answer(self, waveform), input_signature=signature
    )
    name = "__call__" if is_callable else "run"
    module = type("Model", (tf.Module,), {name: call})()
    module.kernel, module.head = kernel(128), kernel(len(CLASSES))
    module.narrow = kernel(WIDTH)
    return module

  def patches(waveform, hop):
    return tf.signal.frame(_spectrogram(tf, waveform), 96, hop, axis=0)

  def flat(x):
    return tf.reshape(x, [-1, 96 * 64])

  def yamnet(model, waveform):
    x = flat(patches(waveform, 48))
    return (
      tf.sigmoid(x @ model.head),
      x @ model.narrow,
      _spectrogram(tf, waveform),
    )

  def save(name, shape, answer, asset=None, is_callable=True):
    module = make(shape, answer, is_callable)
    if asset:
      module.class_map = tf.saved_model.Asset(str(asset))
    signatures = None if is_callable else {"serving_default": module.run}
    tf.saved_model.save(module, str(root / name), signatures)
    return module

  table = root / "yamnet_class_map.csv"
  rows = [f'{i},/m/{i},"{name}"' for i, name in enumerate(CLASSES)]
  table.write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
  waves = save(
    "vggish", [None], lambda model, x: flat(patches(x, 96)) @ model.kernel
  )
  given = waves.kernel.numpy()

  def by_patches(model, x):
    return {"embedding": flat(x) @ given}

  save("vggish_patches", [None, 96, 64], by_patches, is_callable=False)
  save("vggish_images", [None, 96, 64, 1], by_patches, is_callable=False)
  save("yamnet", [None], yamnet, table)
  save("no_classes", [None], yamnet)

  class Trill(tf.Module):
    def __init__(self):
      super().__init__()
      self.kernel = kernel(WIDTH)

    @tf.function(
      input_signature=[
        tf.TensorSpec([None, None], tf.float32, name="samples"),
        tf.TensorSpec([], tf.int32, name="sample_rate"),
      ]
    )
    def __call__(self, samples, sample_rate):
      with tf.control_dependencies(
        [tf.debugging.assert_equal(sample_rate, 16000)]
      ):
        x = flat(patches(samples[0], 17))
      return {"embedding": (x @ self.kernel)[None], "layer19": x[None]}

  tf.saved_model.save(Trill(), str(root / "trill"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  tf = pytest.importorskip("tensorflow")
  root = tmp_path_factory.mktemp("hub")
  _write(tf, root)
  return root


@pytest.fixture(scope="module")
def music():
  generator = np.random.default_rng(1)
  return 0.2 * generator.normal(size=(2, 16000 * 3)).astype(np.float32)


def test_vggish_spectrogram_is_that_of_tensorflow(music):
  tf = pytest.importorskip("tensorflow")
  for clip in music:
    expected = _spectrogram(tf, tf.constant(clip)).numpy()
    np.testing.assert_allclose(vggish_mel.log_mel(clip), expected, atol=2e-5)
  assert vggish_mel.log_mel(music).shape == (2, 298, 64)
  assert vggish_mel.PATCH_SAMPLES == 15600


def test_vggish_takes_waveforms_or_patches(folder, music):
  whole = embedder_specs.open_embedder(f"vggish:{folder}/vggish")
  listener_contract.check(whole, 22050, 2.0, 2)
  expected = whole.embed_audio_windows(music, 16000)
  assert expected.shape == (2, 3, 128)
  for name in ("vggish_patches", "vggish_images"):
    other = embedder_specs.open_embedder(f"vggish:{folder}/{name}")
    np.testing.assert_allclose(
      other.embed_audio_windows(music, 16000), expected, atol=1e-4
    )
    assert other.settings() != whole.settings()
    assert other.fingerprint != whole.fingerprint


def test_windows_are_those_the_model_would_cut_itself(folder, music):
  tf = pytest.importorskip("tensorflow")
  model = tf.saved_model.load(str(folder / "vggish"))
  found = embedder_specs.open_embedder(f"vggish:{folder}/vggish")
  np.testing.assert_allclose(
    found.embed_audio_windows(music, 16000)[0], model(music[0]), atol=1e-4
  )


def test_reference_windows_and_gain(folder, music):
  reference = embedder_specs.open_embedder(
    f"vggish:{folder}/vggish,hop_secs=0.5,gain=peak,tail=zeros"
  )
  assert (reference.hop_secs, reference.settings()["gain"]) == (0.5, "peak")
  found = reference.embed_audio_windows(music, 16000)
  assert found.shape == (2, 6, 128)
  quiet = reference.embed_audio_windows(0.5 * music, 16000)
  np.testing.assert_allclose(found, quiet, atol=1e-4)


def test_the_name_of_a_folder_makes_no_published_weights(folder):
  found = embedder_specs.open_embedder(f"vggish:{folder}/vggish")
  assert found.published_as is None
  assert published_weights.metric_name("FAD", found) == "FAD (vggish)"


def test_yamnet_classifies_and_embeds(folder, music):
  tf = pytest.importorskip("tensorflow")
  found = embedder_specs.open_classifier(f"yamnet:{folder}/yamnet")
  assert found.class_names == CLASSES
  listener_contract.check(found, 22050, 1.4, 2, "classify_windows")
  listener_contract.check(found, 22050, 1.4, 2, "embed_audio_windows")
  scores, vectors, _ = tf.saved_model.load(str(folder / "yamnet"))(music[0])
  logits = found.classify_windows(music, 16000)[0]
  # The model drops what is behind the last whole window; it is filled here.
  count = len(scores)
  np.testing.assert_allclose(
    1 / (1 + np.exp(-logits[:count])), scores, atol=1e-4
  )
  np.testing.assert_allclose(
    found.embed_audio_windows(music, 16000)[0, :count], vectors, atol=1e-4
  )


def test_trill_has_layers(folder, music):
  found = embedder_specs.open_embedder(f"trill:{folder}/trill")
  # 0.17 s of the small model; the last frames that fill a patch.
  listener_contract.check(found, 22050, 1.2, 2)
  other = embedder_specs.open_embedder(f"trill:{folder}/trill,layer=layer19")
  assert (found.embedding_dim, other.embedding_dim) == (WIDTH, 96 * 64)
  assert other.settings() != found.settings()
  with pytest.raises(errors.UserError, match="did you mean 'layer19'"):
    embedder_specs.open_embedder(f"trill:{folder}/trill,layer=layer18")


@pytest.mark.parametrize(
  ("spec", "match"),
  [
    ("vggish:{}/yamnet", "is no VGGish: 1 windows of 0.975 s give"),
    ("vggish:{}/trill", r"takes \['sample_rate', 'samples'\]"),
    ("vggish:{}/none", "no SavedModel at .*none"),
    ("vggish:{}/vggish,gain=loud", "gain='loud': expected one of"),
    ("vggish:{}/vggish,hop_secs=0", "hop_secs=0.0: expected a positive"),
    ("yamnet:{}/vggish", "has no assets/yamnet_class_map.csv"),
    ("yamnet:{}/no_classes", "has no assets/yamnet_class_map.csv"),
    ("yamnet:{}/vggish_patches", r"takes \(None, 96, 64\): expected \[samples"),
    ("trill:{}/vggish", r"it gives \['output_0'\]: expected 'embedding'"),
  ],
)
def test_other_models_are_refused(folder, spec, match):
  with pytest.raises(errors.UserError, match=match):
    embedder_specs.open_listener(spec.format(folder))


def test_damaged_model_is_one_line(folder, tmp_path):
  (tmp_path / "saved_model.pb").write_bytes(b"not a graph")
  with pytest.raises(errors.UserError, match="cannot open the SavedModel"):
    embedder_specs.open_listener(f"vggish:{tmp_path}")
