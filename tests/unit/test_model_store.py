from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import small_models
from visionmesh.consensus import Fitted
from visionmesh.model_store import ModelError, ModelStore, load_model
from visionmesh.settings import ROOT
from visionmesh.topics import CLASSIFIERS

MODELS = ROOT / "models"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("models.toml", "classifier-accurate.onnx", "extractor.onnx"):
        shutil.copy(MODELS / name, tmp_path / name)
    return tmp_path


def test_every_model_of_the_table_loads_and_runs() -> None:
    store = ModelStore(MODELS)
    assert {"extractor", "classifier-fast", "classifier-balanced", "classifier-accurate"} <= set(
        store.names()
    )
    for name in (*store.names("extractor"), *store.names("classifier")):
        model = store.load(name)
        shape = (3, 32, 32, 3) if model.kind == "extractor" else (3, model.descriptor_count)
        values = np.zeros(shape, np.uint8 if model.kind == "extractor" else np.float32)
        found = model.run(values)
        assert [len(output) for output in found] == [3] * len(model.output)


def test_the_deployed_models_belong_together() -> None:
    store = ModelStore(MODELS)
    extractor = store.load("extractor")
    classifiers = [store.load(name) for name in store.names("classifier")]
    assert {"random forest", "support vector machine"} <= {model.family for model in classifiers}
    three = [store.describe(worker)["file"] for worker in CLASSIFIERS]
    assert len(set(three)) == 3
    for model in classifiers:
        assert model.extractor == extractor.space
        assert model.descriptor_count == extractor.descriptor_count == 20
        assert len(model.labels) == 10


def test_the_consensus_was_fitted_to_the_classifiers_that_are_deployed() -> None:
    store = ModelStore(MODELS)
    assert len(store.names("consensus")) <= 1
    for name in store.names("consensus"):
        fitted = Fitted.from_table(store.describe(name))
        deployed = {worker.removeprefix("classifier-"): store.describe(worker) for worker in CLASSIFIERS}
        assert fitted.classifiers == {
            classifier: f"classifier-{classifier}@{table['version']}"
            for classifier, table in deployed.items()
        }


def test_the_table_says_where_each_model_comes_from() -> None:
    store = ModelStore(MODELS)
    for name in store.names():
        table = store.describe(name)
        assert table["licence"] == "Apache-2.0"
        assert table["training"].startswith("python -m training")
        if table["kind"] != "locator":
            assert table["metrics"]["top1"] >= 0.8
        if table["kind"] == "consensus":
            continue
        assert (MODELS / table["file"]).stat().st_size == table["bytes"] <= 5_000_000


def test_a_session_uses_one_thread() -> None:
    options = ModelStore(MODELS).load("classifier-accurate").session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_a_locator_is_not_for_those_who_take_descriptors(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[locator-n]\nkind = "locator"\nfile = "qreader_nano.onnx"\n')
    with pytest.raises(ModelError, match="qr-decoder"):
        ModelStore(tmp_path).load("locator-n")


def test_names_of_a_kind() -> None:
    names = ModelStore(MODELS).names("classifier")
    assert names[:3] == ("classifier-fast", "classifier-balanced", "classifier-accurate")
    assert set(names[3:]) == {"classifier-random-forest", "classifier-svm"}


def test_an_unknown_name_lists_the_known(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'resnet'; it has extractor, .*classifier-fast"):
        ModelStore(folder).load("resnet")


def test_an_altered_file_is_refused(folder: Path) -> None:
    path = folder / "classifier-accurate.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        ModelStore(folder).load("classifier-accurate")


def test_a_missing_file_says_what_to_do(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"classifier-fast\.onnx is missing.*make train"):
        ModelStore(folder).load("classifier-fast")


def test_a_missing_table_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="MESH_MODELS_DIR"):
        ModelStore(tmp_path)


def test_a_table_that_does_not_parse_is_named(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text("[extractor\n")
    with pytest.raises(ModelError, match=r"models\.toml is not valid TOML"):
        ModelStore(tmp_path)


def altered(folder: Path, old: str, new: str) -> ModelStore:
    path = folder / "models.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return ModelStore(folder)


def test_a_missing_entry_is_named(folder: Path) -> None:
    store = altered(folder, "descriptor_count", "descriptors")
    with pytest.raises(ModelError, match="has no 'descriptor_count'"):
        store.load("extractor")


def test_a_graph_without_the_promised_outputs_is_refused(folder: Path) -> None:
    store = altered(folder, '["label", "probabilities"]', '["label", "scores"]')
    with pytest.raises(ModelError, match="gives label, scores"):
        store.load("classifier-accurate")


def test_bytes_that_are_no_model_are_refused(folder: Path) -> None:
    known = ModelStore(folder).describe("extractor")["sha256"]
    (folder / "extractor.onnx").write_bytes(b"no model")
    store = altered(folder, known, hashlib.sha256(b"no model").hexdigest())
    with pytest.raises(ModelError, match="can't load the model"):
        store.load("extractor")


# Two folders -----------------------------------------------------------------------------------------------


def test_models_that_were_built_here_are_read_beside_the_deployed(tmp_path: Path) -> None:
    built = small_models.write_models(tmp_path, {"mine": small_models.classifier(favourite="frog")})
    store = ModelStore(MODELS, built)
    assert store.names()[-1] == "mine"
    assert store.load("mine").address == "mine@1.0.0"
    assert store.load("classifier-fast").name == "classifier-fast"


def test_a_second_folder_need_not_be_there(tmp_path: Path) -> None:
    assert ModelStore(MODELS, tmp_path / "none").names() == ModelStore(MODELS).names()
    assert ModelStore(MODELS, tmp_path).names() == ModelStore(MODELS).names()


def test_one_name_for_two_models_is_an_error(tmp_path: Path) -> None:
    one = small_models.write_models(tmp_path / "one", {"mine": small_models.classifier(favourite="frog")})
    same = small_models.write_models(tmp_path / "same", {"mine": small_models.classifier(favourite="frog")})
    other = small_models.write_models(tmp_path / "other", {"mine": small_models.classifier(favourite="dog")})
    assert ModelStore(one, same).names() == ("mine",)
    with pytest.raises(ModelError, match="have a model 'mine', and not the same one"):
        ModelStore(one, other)


# What a model says of itself -------------------------------------------------------------------------------


def test_variants_of_one_net_share_a_space() -> None:
    def space(**options: str) -> str:
        return load_model("x", *small_models.extractor(**options), source="the test").space  # type: ignore[arg-type]

    assert space() == "x@1.0.0"
    assert space(space="extractor@2.0.0") == "extractor@2.0.0"


def test_a_registry_has_numbers_of_its_own() -> None:
    model = load_model("x", *small_models.extractor(), source="the test", version="7")
    assert model.address == "x@7"
    # Classifiers know the space by the number it was trained under.
    assert model.space == "x@1.0.0"


def test_the_side_of_the_pictures_is_that_of_the_graph() -> None:
    for side in (32, 224):
        model = load_model("x", *small_models.extractor(side=side), source="the test")
        assert model.input_shape == (None, side, side, 3)
    assert load_model("x", *small_models.classifier(width=50), source="the test").input_shape == (None, 50)


def test_a_consensus_is_a_table_without_a_file(tmp_path: Path) -> None:
    folder = small_models.write_models(tmp_path, {"fast": small_models.classifier()})
    with (folder / "models.toml").open("a") as table:
        table.write('[consensus]\nkind = "consensus"\nversion = "1.0.0"\n')
    store = ModelStore(folder)
    assert store.names("consensus") == ("consensus",)
    with pytest.raises(ModelError, match=r"'consensus'.*has no 'file'"):
        store.load("consensus")


@pytest.mark.parametrize("width", [10, 21, 50])
def test_a_model_that_does_not_keep_what_its_table_says_is_refused(width: int) -> None:
    table, model = small_models.classifier(said_width=width)
    with pytest.raises(ModelError, match=rf"does not take \[1, {width}\]"):
        load_model("x", table, model, source="the test")
    table, model = small_models.extractor()
    with pytest.raises(ModelError, match=r"gives \[\(1, 20\)\] for one row; by its table"):
        load_model("x", table | {"descriptor_count": width}, model, source="the test")
    table, model = small_models.classifier()
    with pytest.raises(ModelError, match="9 labels"):
        load_model("x", table | {"labels": table["labels"][:9]}, model, source="the test")


def test_a_graph_for_one_picture_at_a_time_is_refused() -> None:
    table, model = small_models.classifier(batch=1)
    with pytest.raises(ModelError, match="has to be a batch of any size"):
        load_model("x", table, model, source="the test")


def test_what_can_not_be_read_is_said(tmp_path: Path) -> None:
    folder = small_models.write_models(tmp_path / "models", {"fast": small_models.classifier()})
    (folder / "fast.onnx").unlink()
    (folder / "fast.onnx").mkdir()
    with pytest.raises(ModelError, match=r"fast\.onnx can't be read: Is a directory"):
        ModelStore(folder).load("fast")
    unreadable = tmp_path / "unreadable"
    (unreadable / "models.toml").mkdir(parents=True)
    for folders in ((unreadable, None), (folder, unreadable)):
        with pytest.raises(ModelError, match=r"models\.toml can't be read: Is a directory"):
            ModelStore(*folders)
    (folder / "models.toml").write_bytes(b"# \xff")
    with pytest.raises(ModelError, match="is not valid TOML"):
        ModelStore(folder)


def test_tables_can_be_read_without_onnx_runtime() -> None:
    """ingest-api reads them, and its image has none."""
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path\n"
        "from visionmesh.model_store import ModelStore\n"
        f"print(ModelStore(Path({str(MODELS)!r})).describe('extractor')['kind'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout == "extractor\n", ended.stderr
