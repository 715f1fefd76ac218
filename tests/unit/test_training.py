"""What `make train` is made of. The run itself needs the environment of requirements/train.txt."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import small_models
from training import data, measure, tables
from training_runs import needs_training, npz, pictures, run, trained
from visionmesh.consensus import Fitted
from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT


def archive(folder: Path, per_batch: int) -> Path:
    """A file laid out like the public archive: pickled batches with the planes of each picture in a row."""
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
            rgb, labels = pictures(per_batch, number)
            planes = rgb.transpose(0, 3, 1, 2).reshape(per_batch, -1)
            content = pickle.dumps({b"data": planes, b"labels": labels.tolist()})
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_the_public_archive_is_downloaded_checked_and_read(tmp_path: Path) -> None:
    path = archive(tmp_path, per_batch=7)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    train, test = data.load_archive(path.as_uri(), sha256)
    expected = [pictures(7, number) for number in range(6)]
    assert np.array_equal(train.rgb, np.concatenate([rgb for rgb, _ in expected[:5]]))
    assert np.array_equal(train.labels, np.concatenate([labels for _, labels in expected[:5]]))
    assert np.array_equal(test.rgb, expected[5][0])
    assert data.ARCHIVE.startswith("https://")


def test_another_archive_is_refused_before_it_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match=data.ARCHIVE_SHA256):
        data.load_archive(archive(tmp_path, per_batch=1).as_uri(), data.ARCHIVE_SHA256)


def test_without_a_file_the_public_archive_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path, per_batch=10)
    monkeypatch.setattr(data, "ARCHIVE", path.as_uri())
    monkeypatch.setattr(data, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    dataset = data.load(None, seed=1)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (40, 10, 10)


def test_jpeg_files_are_read_and_split_without_overlap(tmp_path: Path) -> None:
    dataset = data.load(npz(tmp_path, train=50, test=20), seed=1)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (40, 10, 20)
    split = {rgb.tobytes() for rgb in dataset.train.rgb} | {rgb.tobytes() for rgb in dataset.validation.rgb}
    assert len(split) == 50
    expected, labels = pictures(20, 20)
    assert np.abs(dataset.test.rgb.astype(int) - expected).mean() < 8
    assert np.array_equal(dataset.test.labels, labels)


def test_the_split_depends_on_its_seed_alone(tmp_path: Path) -> None:
    path = npz(tmp_path, train=50, test=20)
    assert np.array_equal(data.load(path).train.rgb, data.load(path, seed=data.SPLIT).train.rgb)
    once, again, other = (data.load(path, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(once.train.rgb, again.train.rgb)
    assert not np.array_equal(once.train.rgb, other.train.rgb)


def test_a_limit_keeps_that_many(tmp_path: Path) -> None:
    dataset = data.load(npz(tmp_path, train=50, test=20), seed=1, limit=20)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (20, 4, 4)


def test_pictures_move_by_a_few_pixels_and_nothing_else() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (60, 8, 8, 3), np.uint8)
    moved = data.shifted(rgb, 2, np.random.default_rng(2))
    offsets = set()
    for before, after in zip(rgb, moved, strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), "reflect")
        places = [(y, x) for y in range(5) for x in range(5)]
        offsets |= {(y, x) for y, x in places if np.array_equal(padded[y : y + 8, x : x + 8], after)}
    assert len(offsets) > 15


def test_models_toml_is_written_as_it_stands() -> None:
    text = (ROOT / "models" / "models.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    assert text.endswith("".join(f"\n{tables.toml(table, name)}" for name, table in found.items()))


def test_any_table_survives() -> None:
    deep = {"a b": {"0.9": {"x": [1, 2.5, True, "ü\n"]}}, "empty": {}, "none": [], "last": "\U0001f600"}
    assert tomllib.loads(tables.toml(deep)) == deep
    assert tomllib.loads(tables.toml(deep, "with a name")) == {"with a name": deep}


def answers(confidence: float, right: int, wrong: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities of two labels, and the true ones: so many right and wrong at one confidence."""
    probabilities = np.tile([confidence, 1 - confidence], (right + wrong, 1))
    return probabilities, np.repeat([0, 1], [right, wrong])


def test_who_is_right_as_often_as_sure_is_calibrated() -> None:
    assert measure.expected_calibration_error(*answers(0.8, 8, 2)) == pytest.approx(0)
    assert measure.expected_calibration_error(*answers(0.9, 5, 5)) == pytest.approx(0.4)


def test_bins_of_confidence_count_by_their_share() -> None:
    (sure, of_sure), (unsure, of_unsure) = answers(0.95, 15, 15), answers(0.6, 6, 4)
    together = np.concatenate([sure, unsure]), np.concatenate([of_sure, of_unsure])
    assert measure.expected_calibration_error(*together) == pytest.approx(0.75 * 0.45)


def test_surprise_and_brier_are_those_of_the_textbook() -> None:
    quality = measure.quality(np.array([[0.5, 0.5], [0.1, 0.9]]), np.array([0, 0]))
    assert quality["nll"] == pytest.approx((np.log(2) + np.log(10)) / 2, abs=1e-4)
    assert quality["brier"] == pytest.approx((0.5 + 1.62) / 2)
    assert quality["top1"] == 0.5


def test_coverage_is_found_on_some_pictures_and_measured_on_others() -> None:
    confidence = np.array([0.99, 0.9, 0.8, 0.7])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    (_, at_90, _) = measure.coverage(
        (probabilities, np.array([0, 0, 1, 1])), (probabilities[[0, 2, 3, 3]], np.array([1, 0, 0, 0]))
    )
    assert at_90 == {"precision": 0.9, "threshold": 0.9, "answered": 0.25, "reached": 0.0}


def test_where_no_confidence_is_enough_nothing_is_answered() -> None:
    wrong = answers(0.9, 0, 3)
    assert [point["answered"] for point in measure.coverage(wrong, wrong)] == [0, 0, 0]


@needs_training
def test_nothing_is_trained_that_mlflow_could_not_be_told(tmp_path: Path) -> None:
    done = run("-m", "training", "--models", str(tmp_path), tracking_uri="http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Nothing was trained")
    assert not list(tmp_path.iterdir())


@needs_training
@pytest.mark.timeout(900)
def test_a_small_training_gives_models_that_load_and_beat_chance(tmp_path: Path) -> None:
    pictures_file = npz(tmp_path, train=1_000, test=100)
    arguments = ["-m", "training", "--data", str(pictures_file), "--epochs", "3", "--models", str(tmp_path)]
    trained(*arguments)
    store = ModelStore(tmp_path)
    assert store.names("extractor") == ("extractor", "extractor-float")
    assert set(store.names("classifier")) == {
        f"classifier-{name}" for name in ("fast", "balanced", "accurate", "random-forest", "svm")
    }
    extractor = store.load("extractor")
    assert store.load("extractor-float").space == extractor.space
    test = data.load(pictures_file).test
    descriptors = extractor.run(test.rgb)[0]
    for name in store.names("classifier"):
        found, probabilities = store.load(name).run(descriptors)
        assert store.describe(name)["extractor"] == extractor.space
        assert probabilities.shape == (100, 10)
        assert (found == test.labels).mean() > 0.3, name
    assert Fitted.from_table(store.describe("consensus")).classifiers == {
        name: store.load(f"classifier-{name}").address for name in ("fast", "balanced", "accurate")
    }
    written = {path.name: path.read_bytes() for path in tmp_path.glob("classifier-*.onnx")}
    report = (tmp_path / "REPORT.md").read_text()
    for section in (
        "The extractor",
        "The classifiers",
        "Calibration",
        "The consensus",
        "10, 20 and 50",
        "Seeds",
    ):
        assert f"## {section}" in report
    (tmp_path / "REPORT.md").unlink()
    trained("-m", "training.report", "--models", str(tmp_path))
    assert (tmp_path / "REPORT.md").read_text() == report
    trained(*arguments, "--keep-extractor", "--without-widths")
    again = {path.name: path.read_bytes() for path in tmp_path.glob("classifier-*.onnx")}
    assert again == written, "the same seed gave other classifiers"


# Which of the two is deployed depends on what int8 is worth.
FEATURES = """
import sys
import numpy as np
import onnx
from training import export, seen
model = onnx.load(sys.argv[1])
for graph in (model, export.halved(model)):
    descriptors, features = export.run(seen.with_features(graph), np.full((2, 32, 32, 3), 7, np.uint8))
    assert descriptors.shape == (2, 20)
    assert features.tolist() == [[7.0], [7.0]], features
"""


@needs_training
def test_what_a_bottleneck_takes_is_told_of_float_and_of_half_weights(tmp_path: Path) -> None:
    _, content = small_models.extractor()
    (tmp_path / "extractor.onnx").write_bytes(content)
    trained("-c", FEATURES, str(tmp_path / "extractor.onnx"))


# A cloud for each class, so near one another that no family is right every time.
CLOUDS = """
import numpy as np
from training import classifiers, export, measure
random = np.random.default_rng(1)
centres = random.normal(0, 1.5, (10, 6))
y = np.arange(1300) % 10
x = measure.rounded((centres[y] + random.normal(0, 1, (1300, 6))).astype("f4"))
train, held_out = classifiers.Examples(x[:1000], y[:1000]), classifiers.Examples(x[1000:], y[1000:])
"""


@needs_training
def test_the_graph_of_every_candidate_is_right_often_and_calibrated() -> None:
    trained(
        "-c",
        CLOUDS
        + """
tried = [classifiers.trials(each, {"train": train}, held_out, 1) for each in classifiers.CANDIDATES]
found = [classifiers.best(trials) for trials in tried]
for trial in found:
    assert trial.quality["top1"] > 0.6, (trial.candidate.name, trial.quality)
    assert trial.quality["ece"] < 0.1, (trial.candidate.name, trial.quality)
    labels, probabilities = export.run(trial.graph, held_out.descriptors)
    assert np.array_equal(probabilities.argmax(axis=1), labels)
    (huge,) = export.run(trial.graph, np.full((1, 6), 3e38, "f4"))[1:]
    assert np.isfinite(huge).all(), trial.candidate.name
assert len({trial.candidate.name for trial in classifiers.choose(found).values()}) == 3
""",
    )


@needs_training
def test_the_three_are_chosen_by_the_rule() -> None:
    trained(
        "-c",
        """
from training.classifiers import Candidate, Trial, choose
def trial(name, operations, top1, nll, ece=0.01):
    quality = {"top1": top1, "nll": nll, "ece": ece}
    return Trial(Candidate(name, "", None), "", "", operations, None, None, quality)
weak, cheap = trial("weak", 1, 0.8, 0.6), trial("cheap", 100, 0.897, 0.4)
middle = trial("middle", 900, 0.9, 0.35)
worse, large = trial("worse", 500, 0.898, 0.36), trial("large", 9_000, 0.9, 0.3)
dear = trial("dear", 5_000, 0.899, 0.31)
lucky, boastful = trial("lucky", 8_000, 0.9015, 0.38), trial("boastful", 7_000, 0.95, 0.2, ece=0.05)
chosen = choose([lucky, dear, boastful, large, worse, middle, cheap, weak])
assert {role: each.candidate.name for role, each in chosen.items()} == {
    "fast": "cheap", "balanced": "middle", "accurate": "large"
}
""",
    )


@needs_training
def test_boosted_trees_answer_as_scikit_learn_does() -> None:
    trained(
        "-c",
        CLOUDS
        + """
models, learned = [], classifiers.HistGradientBoostingClassifier
fit = learned.fit
learned.fit = lambda model, *given: models.append(model) or fit(model, *given)
scores = classifiers.boosting(train.descriptors, train.labels, 1)
expected = models[0].decision_function(held_out.descriptors)
same = np.abs(classifiers.scores_of(scores, held_out.descriptors) - expected).max(axis=1) < 1e-4
# A number right on a threshold may fall on either side.
assert same.mean() > 0.97, same.mean()
""",
    )


@needs_training
def test_the_consensus_trusts_who_knows() -> None:
    trained(
        "-c",
        """
import numpy as np
from training import consensus
random = np.random.default_rng(1)
labels = random.integers(0, 10, 2000)
logits = 3 * np.eye(10)[labels] + random.normal(0, 1, (2000, 10))
knows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
misled = np.exp(random.normal(0, 1, (2000, 10)) - 3 * np.eye(10)[labels])
misled /= misled.sum(axis=1, keepdims=True)
weights = consensus.fit([knows, misled], labels)
assert weights[0] > 0.5 and weights[1] == 0, weights
""",
    )


@needs_training
def test_an_interrupted_baseline_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    trained(
        "-c",
        """
import sys
from pathlib import Path
import numpy as np
from training import baseline, data
dataset, checkpoint = data.load(Path(sys.argv[1]), limit=300), Path(sys.argv[2])
whole = baseline.fit(dataset, epochs=2, seed=1, checkpoint=None)
top1 = baseline.top1
def stop(*_):
    raise KeyboardInterrupt
baseline.top1 = stop
try:
    baseline.fit(dataset, epochs=2, seed=1, checkpoint=checkpoint)
except KeyboardInterrupt:
    baseline.top1 = top1
resumed = baseline.fit(dataset, epochs=2, seed=1, checkpoint=checkpoint)
for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
    assert np.allclose(one, other, atol=1e-3), np.abs(one - other).max()
""",
        str(npz(tmp_path, train=400, test=100)),
        str(tmp_path / "baseline.keras"),
    )
