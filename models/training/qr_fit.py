"""The training of the locator's net, apart from `qr_locator`: who draws has no use for TensorFlow."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from training import qr_export, qr_grow
from training.extractor import orthogonal
from training.qr_locator import BATCH, CHANNELS, SIDE, TARGETS, batches
from training.qr_net import FIELDS, WIDTHS, build
from training.tables import TABLE, tables_in, toml, written

VERSION = "1.0.0"
# As the seed names the files of the four sizes.
FILES = {
    "n": "qreader_nano.onnx",
    "s": "qreader_small.onnx",
    "m": "qreader_medium.onnx",
    "l": "qreader_large.onnx",
}

RATE = 3e-3
# Of a net that begins with what a narrower one has learned.
GROWN_RATE = 1e-3
WARM_UP = 0.03
# The share of the training over which the rate falls to nothing.
COOL_DOWN = 0.45
WEIGHT_DECAY = 0.01
MOMENTUM = 0.95
# Of Muon's step: twice as long as one of Adam's (Liu and others, arXiv:2502.16982).
MUON_LENGTH = 0.4

# Batches between two lines of the log, and between two checkpoints.
LOGGED = 50
KEPT = 250

layers = keras.layers


class KerasLayers:
    """Layers to be trained, named by their number."""

    def __init__(self) -> None:
        self._count = 0

    def convolution(self, x: Any, channels: int, kernel: int, stride: int = 1, *, relu: bool = True) -> Any:
        x = layers.Conv2D(
            channels,
            kernel,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"conv{self._count}",
        )(x)
        x = layers.BatchNormalization(momentum=0.97, name=f"norm{self._count}")(x)
        self._count += 1
        return layers.ReLU()(x) if relu else x

    def add(self, x: Any, y: Any, *, relu: bool) -> Any:
        x = layers.Add()([x, y])
        return layers.ReLU()(x) if relu else x

    def doubled(self, x: Any) -> Any:
        return layers.UpSampling2D(2, interpolation="nearest")(x)

    def head(self, x: Any, channels: int) -> Any:
        # Nothing is likely at first: a code or a corner in one cell of a hundred.
        bias = [
            -4.6 if name in ("middle", "near", "finder") else 0.0
            for name, n in FIELDS.items()
            for _ in range(n)
        ]
        head = layers.Conv2D(channels, 1, name="head")
        x = head(x)
        head.bias.assign(bias)
        return x


def use_threads(count: int) -> None:
    """Of TensorFlow; before anything else is done with it."""
    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def new(size: str) -> keras.Model:
    """uint8 pictures [N, height, width, 1] -> fields float32 [N, height / 8, width / 8, 14]."""
    pictures = keras.Input((None, None, 1), dtype="uint8")
    return keras.Model(pictures, build(KerasLayers(), layers.Rescaling(1.0)(pictures), WIDTHS[size]))


@keras.saving.register_keras_serializable("visionmesh")
class Trapezoid(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises, stays, and falls to zero: a training that stayed can be prolonged."""

    def __init__(self, steps: int, rate: float = RATE) -> None:
        self.steps = steps
        self.rate = rate

    def __call__(self, step: Any) -> Any:
        done = tf.cast(step, tf.float32) / self.steps
        share = tf.minimum(tf.minimum(done / WARM_UP, 1.0), (1 - done) / COOL_DOWN)
        return self.rate * tf.maximum(share, 0.002)

    def get_config(self) -> dict[str, Any]:
        return {"steps": self.steps, "rate": self.rate}


@keras.saving.register_keras_serializable("visionmesh")
class Muon(keras.optimizers.Muon):
    """Muon for the kernels of convolutions, as matrices [everything else, channels]; AdamW for the rest."""

    def _should_use_adamw(self, variable: Any) -> bool:
        return not variable.path.startswith("conv")

    def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
        self.assign_add(m, gradient + m * (self.momentum - 1))
        rows = tf.reshape(gradient + self.momentum * m, (-1, variable.shape[-1]))
        wide = rows.shape[0] < rows.shape[1]
        turned = orthogonal(rows) if wide else tf.transpose(orthogonal(tf.transpose(rows)))
        length = MUON_LENGTH * max(rows.shape) ** 0.5
        self.assign_sub(variable, tf.reshape(lr * length * turned, variable.shape))


def loss(said: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """float32 [5]: of middles, sizes, corners, what is near corners, and finder patterns."""
    part = {name: target[..., where] for name, where in TARGETS.items()}
    fields = dict(zip(FIELDS, tf.split(said, list(FIELDS.values()), axis=-1), strict=True))
    codes = tf.maximum(tf.reduce_sum(tf.cast(part["middle"] == 1, tf.float32)), 1.0)
    weight = tf.maximum(tf.reduce_sum(part["weight"]), 1.0)
    size = tf.reduce_sum(part["weight"] * tf.abs(fields["size"] - part["size"])) / weight
    corners = tf.reduce_sum(part["weight"] * tf.abs(fields["corners"] - part["corners"])) / weight
    near = tf.nn.sigmoid_cross_entropy_with_logits(part["near"], fields["near"]) * part["counts"]
    near = tf.reduce_sum(near) / (50 * codes)
    offset = tf.reduce_sum(part["reached"] * tf.abs(fields["offset"] - part["offset"])) / tf.maximum(
        tf.reduce_sum(part["reached"]), 1.0
    )
    return tf.stack(
        [
            _focal(fields["middle"], part["middle"], part["counts"]) / codes,
            size,
            0.5 * corners,
            near + 0.5 * offset,
            0.3 * _focal(fields["finder"], part["finder"], part["counts"]) / (3 * codes),
        ]
    )


def _focal(logits: tf.Tensor, target: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """CenterNet's loss of a map of peaks: hard cells count most, those beside a peak little."""
    there = tf.sigmoid(logits)
    peak = tf.cast(target == 1, tf.float32)
    hit = peak * (1 - there) ** 2 * tf.nn.softplus(-logits)
    miss = (1 - peak) * (1 - target) ** 4 * there**2 * tf.nn.softplus(logits)
    return tf.reduce_sum((hit + miss) * counts)


def fit(
    size: str,
    *,
    pictures: int,
    seed: int,
    checkpoint: Path | None,
    workers: int,
    narrower: tuple[str, Path] | None = None,
) -> keras.Model:
    """Trains a net until it has seen so many pictures: the one in `checkpoint`, or a new one.

    narrower: size and .keras file of a trained net, from which a new one begins.
    """
    keras.utils.set_random_seed(seed)
    steps = max(1, pictures // BATCH)
    net, optimizer = _resumed(size, steps, checkpoint, narrower)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, SIDE, SIDE), tf.uint8),
            tf.TensorSpec((None, None, None, CHANNELS), tf.float16),
        ]
    )
    def step(shown: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            parts = loss(net(shown[..., None], training=True), tf.cast(target, tf.float32))
            total = tf.reduce_sum(parts)
        gradients = tape.gradient(total, net.trainable_variables)
        optimizer.apply(gradients, net.trainable_variables)
        return parts

    done = int(optimizer.iterations)
    print(f"locator {size}: {net.count_params()} parameters, batch {done} of {steps}", flush=True)
    sums, started = tf.zeros(5), time.monotonic()
    for number, (shown, target) in enumerate(batches(seed, range(done, steps), workers), done + 1):
        sums += step(tf.constant(shown), tf.constant(target))
        if number % LOGGED == 0 or number == steps:
            since = (number - done - 1) % LOGGED + 1
            parts = " ".join(f"{each:.3f}" for each in (sums / since).numpy())
            pace = (time.monotonic() - started) / since / BATCH * 1000
            print(f"{number}/{steps}: {parts}, {pace:.1f} ms a picture", flush=True)
            sums, started, done = tf.zeros(5), time.monotonic(), number
        if checkpoint is not None and (number % KEPT == 0 or number == steps):
            _keep(net, checkpoint)
    return net


def _resumed(
    size: str, steps: int, checkpoint: Path | None, narrower: tuple[str, Path] | None
) -> tuple[keras.Model, Muon]:
    net = new(size)
    rate = RATE
    if narrower is not None:
        rate = GROWN_RATE
        smaller, file = narrower
        qr_grow.grow(keras.saving.load_model(file), WIDTHS[smaller], net, WIDTHS[size])
    schedule = Trapezoid(steps, rate)
    optimizer = Muon(schedule, weight_decay=WEIGHT_DECAY, adam_weight_decay=0.0, momentum=MOMENTUM)
    optimizer.build(net.trainable_variables)
    net.compile(optimizer)
    if checkpoint is not None and checkpoint.exists():
        kept = keras.saving.load_model(checkpoint)
        net.set_weights(kept.get_weights())
        # Not its schedule: that is the one of the pictures that are asked for now.
        for variable, value in zip(optimizer.variables, kept.optimizer.variables, strict=True):
            variable.assign(value)
    return net, optimizer


def _keep(net: keras.Model, checkpoint: Path) -> None:
    unfinished = checkpoint.with_suffix(".new.keras")
    net.save(unfinished)
    os.replace(unfinished, checkpoint)


def write(
    net: keras.Model, size: str, folder: Path, *, pictures: int, seed: int, narrower: str | None = None
) -> None:
    """The net as an ONNX file, and its table in `models.toml` beside those that are there.

    narrower: size of the net that it began as.
    """
    name, path = f"locator-{size}", folder / TABLE
    tables = tables_in(folder)
    tables[name] = {
        "version": VERSION,
        "licence": "Apache-2.0",
        "training": f"python -m training.qr_locator --size {size} --pictures {pictures} --seed {seed}"
        + (f" --narrower {narrower} {narrower}.keras" if narrower else ""),
        "seed": seed,
        "kind": "locator",
        "family": "convolutional net",
        "precision": "fp32, weights stored as fp16",
        "input": "picture",
        "output": ["quads", "scores"],
        "origin": "trained from nothing on pictures that were drawn for it (models/LOCATOR.md)",
        "parameters": net.count_params(),
        **written(folder / FILES[size], qr_export.locator(net, WIDTHS[size], size)),
    }
    head = "".join(line for line in _lines(path) if line.startswith("#"))
    path.write_text(head + toml(tables), encoding="utf-8")
    print(f"{name}: {tables[name]['bytes']} bytes in {folder / FILES[size]}", flush=True)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
