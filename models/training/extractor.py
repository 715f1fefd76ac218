"""The extractor: a small convolutional net whose 20-wide bottleneck is the descriptor of a picture.

Whitening of 2x2 patches, then three blocks of two 3x3 convolutions, after Keller Jordan's "94% on
CIFAR-10 in 3.29 seconds" (arXiv:2404.00498), slimmer, with ReLU (which int8 keeps exactly) and with a
linear bottleneck before the softmax head. About 48 million multiplications a picture.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.data import Dataset, Pictures

DESCRIPTORS = 20
WIDTHS = (48, 128, 192)
BATCH = 256
PEAK_RATE = 0.2
WARM_UP = 0.2
WEIGHT_DECAY = 5e-3
LABEL_SMOOTHING = 0.1
PADDING = 4
ZOOMED = 0.25
MEMORY = 0.9

layers = keras.layers


def build(train: Pictures) -> keras.Model:
    """float32 pictures [N,32,32,3] of 0..255 -> logits [N,10]; the layer "descriptors" gives [N,20].

    Batch normalisation only shifts and never scales, so that it commutes with max pooling and
    folds into the convolution before it. The one of the descriptors gives each unit variance.
    """
    pictures = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(pictures)
    x = layers.Conv2D(24, 2, activation="relu", trainable=False, name="whitening")(x)
    for number, width in enumerate(WIDTHS):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{number}a")(x)
        x = layers.MaxPool2D(2)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=MEMORY, scale=False, name=f"norm{number}a")(x))
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{number}b")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=MEMORY, scale=False, name=f"norm{number}b")(x))
    x = layers.Flatten()(layers.MaxPool2D(3)(x))
    x = layers.Dense(DESCRIPTORS, use_bias=False, name="bottleneck")(x)
    x = layers.BatchNormalization(momentum=MEMORY, center=False, scale=False, name="descriptors")(x)
    model = keras.Model(pictures, layers.Dense(len(np.unique(train.labels)), name="head")(x))
    model.get_layer("whitening").set_weights(whitening(train.rgb))
    return model


def whitening(rgb: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Weights [2,2,3,24] and bias [24] that decorrelate the 2x2 patches of pictures scaled to 0..1.

    Each of the 12 eigenvectors appears with both signs, so that ReLU loses nothing.
    """
    sample = rgb[:5_000].astype(np.float32) / 255
    patches = np.lib.stride_tricks.sliding_window_view(sample, (2, 2), axis=(1, 2))
    flat = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    variances, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    filters = (vectors / np.sqrt(variances + 5e-4)).astype(np.float32)
    filters = np.concatenate([filters, -filters], axis=1)
    return [filters.reshape(2, 2, 3, 24), -flat.mean(axis=0) @ filters]


def augment(rgb: tf.Tensor) -> tf.Tensor:
    """Shifts, mirrors and sometimes zooms each picture: uint8 [N,32,32,3] -> float32, same shape.

    All three are one resampling of the padded picture; a shift by whole pixels reads them unchanged.
    """
    count = tf.shape(rgb)[0]
    padded = tf.pad(rgb, [[0, 0], [PADDING, PADDING], [PADDING, PADDING], [0, 0]], "REFLECT")
    last = 31.0 + 2 * PADDING
    zoomed = tf.random.uniform([count]) < ZOOMED
    size = tf.where(zoomed, 31 * tf.random.uniform([count], 0.75, 1.2), 31.0)
    room = last - size
    top, left = (tf.random.uniform([count]) * (room + 1) - 0.5 for _ in range(2))
    top, left = (tf.clip_by_value(tf.round(start), 0.0, tf.floor(room)) for start in (top, left))
    right = left + size
    mirrored = tf.random.uniform([count]) < 0.5
    first, final = tf.where(mirrored, right, left), tf.where(mirrored, left, right)
    boxes = tf.stack([top, first, top + size, final], axis=1) / last
    return tf.image.crop_and_resize(padded, boxes, tf.range(count), (32, 32))


class Triangle(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises to PEAK_RATE over the first WARM_UP of all steps, then falls to zero."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        done = tf.cast(step, tf.float32) / self.steps
        return PEAK_RATE * tf.minimum(0.1 + 0.9 * done / WARM_UP, (1 - done) / (1 - WARM_UP))

    def get_config(self) -> dict[str, Any]:
        return {"steps": self.steps}


def fit(dataset: Dataset, *, epochs: int, seed: int) -> keras.Model:
    """Trains a new net; prints a line per epoch with the loss and the validation accuracy."""
    keras.utils.set_random_seed(seed)
    train = dataset.train
    model = build(train)
    steps = len(train) // BATCH
    optimizer = keras.optimizers.SGD(
        Triangle(steps * epochs), momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    optimizer.exclude_from_weight_decay(var_names=["beta", "bias"])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)
    model.compile(optimizer, loss, metrics=["accuracy"])
    rgb, targets = tf.constant(train.rgb), tf.one_hot(train.labels, 10)
    batches = (
        tf.data.Dataset.range(len(train))
        .shuffle(len(train), seed=seed)
        .batch(BATCH, drop_remainder=True)
        .map(lambda chosen: (augment(tf.gather(rgb, chosen)), tf.gather(targets, chosen)))
        .prefetch(2)
    )
    validation = dataset.validation
    checked = tf.data.Dataset.from_tensor_slices(
        (validation.rgb.astype(np.float32), tf.one_hot(validation.labels, 10))
    ).batch(500)
    model.fit(batches, validation_data=checked, epochs=epochs, verbose=2)
    return model
