"""The extractor: a small convolutional net whose 20-wide bottleneck is the descriptor of a picture.

Whitening of 2x2 patches, then three blocks of two 3x3 convolutions, trained with Muon, alternating
mirrors and label smoothing, after Keller Jordan's "94% on CIFAR-10 in 3.29 seconds" (arXiv:2404.00498)
and his Muon (kellerjordan.github.io/posts/muon), with ReLU (which int8 keeps exactly) and with a linear
bottleneck before the softmax head. About 118 million multiplications a picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.data import Dataset, Pictures, shifted

DESCRIPTORS = 20
WIDTHS = (64, 256, 256)
BATCH = 512
LABEL_SMOOTHING = 0.2
SHIFT = 2
# Of the running means of a normalisation: about the last 20 batches, which at the end are taken with
# weights that hardly move any more.
MEMORY = 0.95

# The share of its own length by which a matrix is turned in the first step; falls to zero with the others.
MUON_RATE = 0.2
MUON_MOMENTUM = 0.7
HEAD_RATE = 1.0
BIAS_RATE = 5.0
SGD_MOMENTUM = 0.85

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
        x = _convolution(width, f"conv{number}a")(x)
        x = layers.MaxPool2D(2)(x)
        x = layers.ReLU()(_normalisation(f"norm{number}a")(x))
        x = _convolution(width, f"conv{number}b")(x)
        x = layers.ReLU()(_normalisation(f"norm{number}b")(x))
    x = layers.Flatten()(layers.MaxPool2D(3)(x))
    x = layers.Dense(DESCRIPTORS, use_bias=False, name="bottleneck")(x)
    x = layers.BatchNormalization(momentum=MEMORY, center=False, scale=False, name="descriptors")(x)
    model = keras.Model(pictures, layers.Dense(len(np.unique(train.labels)), name="head")(x))
    model.get_layer("whitening").set_weights(whitening(train.rgb))
    return model


def _convolution(width: int, name: str) -> keras.layers.Layer:
    return layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)


def _normalisation(name: str) -> keras.layers.Layer:
    return layers.BatchNormalization(momentum=MEMORY, scale=False, name=name)


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


def augmented(
    rgb: NDArray[np.uint8], first_mirrored: NDArray[np.bool_], epoch: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Each picture of uint8 [N,32,32,3] shifted by up to SHIFT pixels, and mirrored in every other epoch.

    Alternating shows both sides of a picture equally often, which drawing lots does not.
    """
    moved = shifted(rgb, SHIFT, random)
    mirrored = first_mirrored ^ bool(epoch % 2)
    moved[mirrored] = moved[mirrored, :, ::-1]
    return moved


def orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """About the nearest matrix [rows, columns] with orthonormal rows; rows <= columns.

    Five Newton-Schulz iterations with the coefficients of Jordan's Muon: singular values end up
    between 0.7 and 1.2, which is near enough and cheaper than exact.
    """
    x = matrix / (tf.norm(matrix) + 1e-7)
    for _ in range(5):
        square = tf.matmul(x, x, transpose_b=True)
        x = 3.4445 * x + tf.matmul(-4.7750 * square + 2.0315 * tf.matmul(square, square), x)
    return x


class Optimizer:
    """Muon for the weights before a normalisation, momentum SGD for the head and the biases.

    The length of a weight before a normalisation changes nothing, so it is kept at that of an orthogonal
    matrix and the rate is a share of it, the same for every layer.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self._variables = [(variable, tf.Variable(tf.zeros(variable.shape))) for variable in variables]

    def apply(self, gradients: Sequence[tf.Tensor], share: tf.Tensor) -> None:
        """One step. share: of the first step's rates, from 1 down to 0."""
        for (variable, momentum), gradient in zip(self._variables, gradients, strict=True):
            name = variable.path
            if name.startswith(("conv", "bottleneck")):
                momentum.assign(MUON_MOMENTUM * momentum + gradient)
                self._turn(variable, gradient + MUON_MOMENTUM * momentum, MUON_RATE * share)
            else:
                momentum.assign(SGD_MOMENTUM * momentum + gradient)
                rate = BIAS_RATE if name.endswith("beta") else HEAD_RATE
                variable.assign_sub(rate * share * (gradient + SGD_MOMENTUM * momentum))

    def _turn(self, variable: keras.Variable, direction: tf.Tensor, rate: tf.Tensor) -> None:
        width = variable.shape[-1]
        rows = tf.transpose(tf.reshape(direction, (-1, width)))
        turned = tf.reshape(tf.transpose(orthogonal(rows)), variable.shape)
        value = tf.convert_to_tensor(variable)
        variable.assign(value * (width**0.5 / tf.norm(value)) - rate * turned)


def fit(dataset: Dataset, *, epochs: int, seed: int) -> keras.Model:
    """Trains a new net; prints a line per epoch with the loss and the validation accuracy."""
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    train = dataset.train
    model = build(train)
    classes = model.output_shape[-1]
    optimizer = Optimizer(model.trainable_variables)

    @tf.function
    def step(rgb: tf.Tensor, labels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        targets = tf.one_hot(labels, classes) * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / classes
        with tf.GradientTape() as tape:
            logits = model(tf.cast(rgb, tf.float32), training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), share)
        return loss

    first_mirrored = random.random(len(train)) < 0.5
    batch = min(BATCH, len(train) // 4)
    steps = len(train) // batch
    started = time.monotonic()
    for epoch in range(epochs):
        rgb = augmented(train.rgb, first_mirrored, epoch, random)
        losses = []
        for number, chosen in enumerate(np.split(random.permutation(len(train))[: steps * batch], steps)):
            share = tf.constant(1 - (epoch * steps + number) / (epochs * steps), tf.float32)
            loss = step(tf.constant(rgb[chosen]), tf.constant(train.labels[chosen]), share)
            losses.append(float(loss))
        found = logits_of(model, dataset.validation.rgb).argmax(axis=1)
        print(
            f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}, "
            f"validation {(found == dataset.validation.labels).mean():.4f}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    return model


def logits_of(model: keras.Model, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits [N,10] of the mean descriptors of each picture and its mirror image, as deployed."""
    parts = []
    for start in range(0, len(rgb), 500):
        pictures = rgb[start : start + 500].astype(np.float32)
        parts.append((model(pictures).numpy() + model(pictures[:, :, ::-1]).numpy()) / 2)
    return np.concatenate(parts)
