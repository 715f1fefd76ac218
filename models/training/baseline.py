"""`python -m training.baseline`: a plain ResNet-20 on the same pictures, to compare with.

Kaiming He and others, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2:
three stages of three blocks with 16, 32 and 64 channels, identity shortcuts throughout, about 0.27
million parameters. Trained for few epochs with one cycle of the learning rate (Smith, arXiv:1708.07120).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training import data
from training.data import Pictures
from training.report import FOLDER, SEEDS, record_seed

SEED = 1
EPOCHS = 24
BATCH = 256
PEAK_RATE = 0.4
WARM_UP = 0.2
WEIGHT_DECAY = 5e-4
PADDING = 4
BLOCKS = 3
WIDTHS = (16, 32, 64)
REPORT = Path(__file__).parents[1] / FOLDER / SEEDS

layers = keras.layers


def main() -> None:
    arguments = _arguments()
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    dataset = data.load(arguments.data, limit=arguments.limit)
    net = fit(dataset, epochs=arguments.epochs, seed=arguments.seed, checkpoint=arguments.checkpoint)
    found = {
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "train_pictures": len(dataset.train),
        "parameters": net.count_params(),
        "top1_validation": round(top1(net, dataset.validation), 4),
        "top1": round(top1(net, dataset.test), 4),
    }
    print(f"ResNet-20: {found}", flush=True)
    record_seed(arguments.report, "baseline", found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.baseline", description=__doc__)
    parser.add_argument("--data", type=Path, help=".npz of JPEG files; the public archive when absent")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, help="train on this many pictures only, for a quick try")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, help="processor cores to use; all when absent")
    parser.add_argument(
        "--checkpoint", type=Path, help="a .keras file written after each epoch and resumed from when there"
    )
    parser.add_argument("--report", type=Path, default=REPORT, help="JSON file that the figures are added to")
    return parser.parse_args()


@keras.saving.register_keras_serializable("visionmesh")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises to PEAK_RATE over the first WARM_UP of all steps, then falls to zero."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        done = tf.cast(step, tf.float32) / self.steps
        return PEAK_RATE * tf.minimum(0.1 + 0.9 * done / WARM_UP, (1 - done) / (1 - WARM_UP))

    def get_config(self) -> dict[str, Any]:
        return {"steps": self.steps}


def build(train: Pictures) -> keras.Model:
    """uint8 pictures [N,32,32,3] -> logits [N,10]."""
    scaled = train.rgb[:5_000] / 255.0
    mean, deviation = scaled.mean(axis=(0, 1, 2)), scaled.std(axis=(0, 1, 2))
    pictures = keras.Input((32, 32, 3), dtype="uint8")
    x = layers.Rescaling((1 / 255 / deviation).tolist(), (-mean / deviation).tolist())(pictures)
    x = layers.ReLU()(_normalised(_convolution(x, WIDTHS[0])))
    for stage, width in enumerate(WIDTHS):
        for block in range(BLOCKS):
            x = _residual(x, width, stride=2 if stage and not block else 1)
    x = layers.GlobalAveragePooling2D()(x)
    decay = keras.regularizers.L2(WEIGHT_DECAY / 2)
    return keras.Model(pictures, layers.Dense(len(data.LABELS), kernel_regularizer=decay)(x))


def _residual(x: Any, width: int, stride: int) -> Any:
    shortcut = x
    if stride > 1:
        # Without parameters: every other pixel, and zeros for the channels that are new.
        shortcut = shortcut[:, ::stride, ::stride, :]
        new = width - shortcut.shape[-1]
        shortcut = keras.ops.pad(shortcut, [[0, 0], [0, 0], [0, 0], [new // 2, new - new // 2]])
    x = layers.ReLU()(_normalised(_convolution(x, width, stride)))
    return layers.ReLU()(layers.Add()([_normalised(_convolution(x, width)), shortcut]))


def _convolution(x: Any, width: int, stride: int = 1) -> Any:
    return layers.Conv2D(
        width,
        3,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(WEIGHT_DECAY / 2),
    )(x)


def _normalised(x: Any) -> Any:
    return layers.BatchNormalization(momentum=0.9)(x)


def fit(dataset: data.Dataset, *, epochs: int, seed: int, checkpoint: Path | None) -> keras.Model:
    """Trains a new net, or goes on with the one in `checkpoint`; prints a line per epoch.

    What an epoch shows depends on the seed and the epoch's number alone, so that a training that was
    interrupted goes on as if it had not been.
    """
    keras.utils.set_random_seed(seed)
    train, steps = dataset.train, len(dataset.train) // BATCH
    if checkpoint is not None and checkpoint.exists():
        net = keras.saving.load_model(checkpoint)
    else:
        net = build(train)
        net.compile(
            keras.optimizers.SGD(OneCycle(steps * epochs), momentum=0.9, nesterov=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    for epoch in range(int(net.optimizer.iterations) // steps, epochs):
        start = time.monotonic()
        shown = augmented(train, np.random.default_rng((seed, epoch))).take(slice(steps * BATCH))
        history = net.fit(shown.rgb, shown.labels, batch_size=BATCH, shuffle=False, verbose=0).history
        if checkpoint is not None:
            unfinished = checkpoint.with_suffix(".new.keras")
            net.save(unfinished)
            os.replace(unfinished, checkpoint)
        print(
            f"epoch {epoch + 1}/{epochs}: {time.monotonic() - start:.0f} s, loss {history['loss'][0]:.4f}, "
            f"train top-1 {history['accuracy'][0]:.4f}, validation top-1 {top1(net, dataset.validation):.4f}",
            flush=True,
        )
    return net


def augmented(train: Pictures, random: np.random.Generator) -> Pictures:
    """All pictures in a new order, each shifted by up to 4 pixels and every other one mirrored."""
    order = random.permutation(len(train))
    shown = data.shifted(train.rgb[order], PADDING, random)
    mirrored = random.random(len(train)) < 0.5
    shown[mirrored] = shown[mirrored, :, ::-1]
    return Pictures(shown, train.labels[order])


def top1(net: keras.Model, pictures: Pictures) -> float:
    logits: NDArray[np.float32] = net.predict(pictures.rgb, batch_size=500, verbose=0)
    return float((logits.argmax(axis=1) == pictures.labels).mean())


if __name__ == "__main__":
    main()
