# SPDX-License-Identifier: Apache-2.0
"""A TFDS corpus of a few records, as `musiclm prepare` would build it."""

import pathlib

import numpy as np


def build_corpus(directory, records) -> str:
  """Writes a TFDS corpus of `records` by split; returns its directory."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  text = tfds.features.Text()
  features = tfds.features.FeaturesDict(
    {
      "id": text,
      "audio": tfds.features.Tensor(shape=(), dtype=tf.string),
      "sample_rate_hz": np.int32,
      "num_samples": np.int64,
      "work_id": text,
      "arrangement": text,
      "captions": tfds.features.Sequence(text),
      "aspects": tfds.features.Sequence(text),
    }
  )

  with tfds.core.registered.skip_registration():

    class SmallCorpus(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.0.0")
      # Metadata files are looked for beside the class otherwise.
      pkg_dir_path = pathlib.Path(directory)

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=features)

      def _split_generators(self, unused):
        return {
          name: self._generate_examples(rows) for name, rows in records.items()
        }

      def _generate_examples(self, rows):
        for row in rows:
          yield row["id"], row

  builder = SmallCorpus(data_dir=directory, file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_path)
