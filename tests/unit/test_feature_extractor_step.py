from __future__ import annotations

import io
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY

from feature_extractor.domain import prepare
from feature_extractor.step import make_step
from visionmesh.cache import NoCache
from visionmesh.contracts import ImageFeatures, ImageUploaded
from visionmesh.errors import Rejected, Unavailable
from visionmesh.model_store import Model
from visionmesh.registry import FixedSource
from visionmesh.results import FeaturesRow, ShadowFeaturesRow
from visionmesh.testing.cache import MemoryCache
from visionmesh.topics import FEATURES
from visionmesh.worker.step import Done, Outgoing, Skipped, Step, Verdict


class MeanModel:
    """Stands in for the net: descriptor n is the mean of the picture plus n / 7."""

    kind = "extractor"

    def __init__(
        self,
        name: str = "mean",
        *,
        side: int = 32,
        width: int = 20,
        space: str = "mean@1",
        content: str = "mean",
    ) -> None:
        self.name = name
        self.sha256 = sha256(content.encode()).hexdigest()
        self.address = f"{name}@1"
        self.space = space
        self.side = side
        self.input_shape = (None, side, side, 3)
        self.descriptor_count = width
        self.batches: list[int] = []

    def run(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        assert pictures.shape[1:] == (self.side, self.side, 3)
        self.batches.append(len(pictures))
        means = pictures.reshape(len(pictures), -1).mean(axis=1, keepdims=True)
        return [(means + np.arange(self.descriptor_count) / 7).astype(np.float32)]


def picture(grey: int, size: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


OBJECTS = {
    "raw-images/1.png": picture(10),
    "raw-images/2.png": picture(20),
    "raw-images/3.png": picture(30),
    "raw-images/empty": b"",
    "raw-images/text.txt": b"this is no picture",
    "raw-images/cut.png": picture(40, 400)[:200],
    "raw-images/paper.pdf": b"%PDF-1.7 and so on",
}


def fetch(minio_path: str) -> bytes:
    try:
        return OBJECTS[minio_path]
    except KeyError:
        raise Rejected("object_not_found", f"{minio_path} does not exist") from None


def source(model: MeanModel | None = None) -> FixedSource:
    return FixedSource(cast(Model, model or MeanModel()))


def plain_step(model: MeanModel | None = None) -> Step[ImageUploaded]:
    """Without a cache."""
    return make_step(fetch, prepare, source(model), NoCache())


def message(name: str, tasks: tuple[str, ...] | None = None, *, sha256: str | None = None) -> ImageUploaded:
    return ImageUploaded(name, f"raw-images/{name}", tasks, sha256)


def digest(name: str) -> str:
    return sha256(OBJECTS[f"raw-images/{name}"]).hexdigest()


def key_of(name: str) -> str:
    """Of a picture that was seen by `MeanModel`, in the cache."""
    return f"descriptors:mean@1:{sha256(b'mean').hexdigest()[:12]}:{digest(name)}"


def kinds(verdicts: Sequence[Verdict]) -> list[str]:
    return [v.code if isinstance(v, Rejected) else type(v).__name__ for v in verdicts]


def plain(verdicts: Sequence[Verdict]) -> list[Any]:
    return [(v.code, v.reason) if isinstance(v, Rejected) else v for v in verdicts]


MIXED = [
    message("1.png"),
    message("missing.png"),
    message("2.png"),
    message("empty"),
    message("text.txt"),
    message("cut.png"),
    message("paper.pdf"),
    message("2.png", ("qr", "ocr")),
    message("3.png", ("classify",)),
]


def test_twice_gives_the_same() -> None:
    step = plain_step()
    assert plain(step(MIXED)) == plain(step(MIXED))


def test_bad_pictures_cost_only_themselves() -> None:
    verdicts = plain_step()(MIXED)
    assert kinds(verdicts) == [
        "Done",
        "object_not_found",
        "Done",
        "empty_file",
        "not_an_image",
        "truncated_image",
        "Skipped",
        "Skipped",
        "Done",
    ]


def test_each_picture_gets_its_own_descriptors() -> None:
    alone = plain_step()
    together = plain_step()(MIXED)
    for asked, verdict in zip(MIXED, together, strict=True):
        assert plain(alone([asked])) == plain([verdict])
        if isinstance(verdict, Done):
            (row,) = verdict.rows
            assert isinstance(row, FeaturesRow)
            assert row.descriptors[0] == int(asked.image_id[0]) * 10


def test_what_is_stored_and_published() -> None:
    (verdict,) = plain_step()([message("1.png")])
    assert isinstance(verdict, Done)
    descriptors = tuple(float(f"{np.float32(10 + n / 7):.4g}") for n in range(20))
    assert verdict.rows == (FeaturesRow("1.png", descriptors, "mean@1"),)
    assert verdict.messages == (Outgoing(FEATURES, ImageFeatures("1.png", descriptors, 20, "mean@1")),)
    # Every byte of a record is paid for a million times: no digit beyond the fourth.
    assert msgspec.json.encode(verdict.messages[0].value).startswith(
        b'{"image_id":"1.png","descriptors":[10.0,10.14,10.29,'
    )


def test_one_run_of_the_model_for_a_batch() -> None:
    model = MeanModel()
    plain_step(model)(MIXED)
    assert model.batches == [3]


def test_no_run_of_the_model_for_nothing() -> None:
    model = MeanModel()
    assert kinds(plain_step(model)([message("empty")])) == ["empty_file"]
    assert model.batches == []


def test_a_task_that_is_not_asked_is_not_even_fetched() -> None:
    def never(minio_path: str) -> bytes:
        raise AssertionError(minio_path)

    (verdict,) = make_step(never, prepare, source(), NoCache())([message("1.png", ("ocr",))])
    assert isinstance(verdict, Skipped)
    assert verdict.reason.startswith("task_not_asked")


def test_an_object_store_that_is_away_is_the_whole_batch_s_trouble() -> None:
    def away(minio_path: str) -> bytes:
        if minio_path.endswith("2.png"):
            raise Unavailable("object_store", "connection refused")
        return fetch(minio_path)

    with pytest.raises(Unavailable):
        make_step(away, prepare, source(), NoCache())(MIXED)


def test_a_bug_is_raised() -> None:
    def broken(data: bytes, side: int) -> NDArray[np.uint8]:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        make_step(fetch, broken, source(), NoCache())([message("1.png")])


# The cache


class Counting:
    """`fetch` and `prepare` that write down what they were asked for."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.prepared: list[tuple[bytes, int]] = []

    def fetch(self, minio_path: str) -> bytes:
        self.fetched.append(minio_path)
        return fetch(minio_path)

    def prepare(self, data: bytes, side: int) -> NDArray[np.uint8]:
        self.prepared.append((data, side))
        return prepare(data, side)


CLAIMED = [
    ImageUploaded(one.image_id, one.minio_path, one.tasks, sha256(OBJECTS[one.minio_path]).hexdigest())
    if one.minio_path in OBJECTS
    else one
    for one in MIXED
]


@pytest.mark.parametrize("messages", [MIXED, CLAIMED], ids=["no digests", "digests"])
def test_the_cache_changes_nothing_in_what_is_stored_and_published(messages: list[ImageUploaded]) -> None:
    without = plain(plain_step()(messages))
    cache = MemoryCache()
    step = make_step(fetch, prepare, source(), cache)
    for _ in range(3):
        assert plain(step(messages)) == without
    assert len(cache.values) == 3
    cache.available = False
    assert plain(step(messages)) == without


@pytest.mark.parametrize("messages", [MIXED, CLAIMED], ids=["no digests", "digests"])
def test_the_second_time_nothing_is_computed(messages: list[ImageUploaded]) -> None:
    model, counting = MeanModel(), Counting()
    step = make_step(counting.fetch, counting.prepare, source(model), MemoryCache())
    before = inferences("answer")
    step(messages)
    assert inferences("answer") == before + 3
    counting.prepared.clear()
    step(messages)
    assert model.batches == [3]
    assert inferences("answer") == before + 3
    # Only what the cache can't know: the pictures that are none.
    assert {data for data, _ in counting.prepared}.isdisjoint(picture(grey) for grey in (10, 20, 30))


def inferences(role: str) -> float:
    return REGISTRY.get_sample_value("mesh_inferences_total", {"role": role}) or 0.0


def test_a_known_picture_whose_digest_is_claimed_is_not_even_fetched() -> None:
    counting = Counting()
    step = make_step(counting.fetch, counting.prepare, source(), MemoryCache())
    first = step([message("1.png", sha256=digest("1.png"))])
    assert counting.fetched == ["raw-images/1.png"]
    assert step([message("1.png", sha256=digest("1.png").upper())]) == first
    assert counting.fetched == ["raw-images/1.png"]
    step([message("1.png")])
    assert counting.fetched == ["raw-images/1.png"] * 2


def test_a_false_digest_files_nothing_under_it() -> None:
    cache = MemoryCache()
    step = make_step(fetch, prepare, source(), cache)
    (verdict,) = step([message("1.png", sha256=digest("2.png"))])
    assert [verdict] == plain_step()([message("1.png")])
    assert list(cache.values) == [key_of("1.png")]
    assert step([message("2.png")]) == plain_step()([message("2.png")])


@pytest.mark.parametrize("claim", ["", "abc", "g" * 64, "0" * 65, "0" * 63 + "\n", "../" * 30])
def test_a_digest_that_is_none_is_not_asked_for(claim: str) -> None:
    class Asked(MemoryCache):
        keys: Sequence[str] = ()

        def get_many(self, keys: Sequence[str], *, length: int) -> list[bytes | None]:
            self.keys = [*self.keys, *keys]
            return super().get_many(keys, length=length)

    cache = Asked()
    step = make_step(fetch, prepare, source(), cache)
    assert step([message("1.png", sha256=claim)]) == plain_step()([message("1.png")])
    assert cache.keys == [key_of("1.png")]


@pytest.mark.parametrize("claimed", [False, True])
def test_equal_pictures_of_a_batch_are_computed_once(claimed: bool) -> None:
    model, counting = MeanModel(), Counting()
    OBJECTS["raw-images/copy.png"] = OBJECTS["raw-images/1.png"]
    names = ["1.png", "2.png", "copy.png", "1.png", "cut.png", "cut.png"]
    messages = [message(name, sha256=digest(name) if claimed else None) for name in names]
    verdicts = make_step(counting.fetch, counting.prepare, source(model), NoCache())(messages)
    assert model.batches == [2]
    assert len(counting.prepared) == 3
    alone = [plain(plain_step()([one]))[0] for one in messages]
    assert plain(verdicts) == alone


def test_values_of_another_length_are_computed_again_and_replaced() -> None:
    cache, model = MemoryCache(), MeanModel()
    key = key_of("1.png")
    cache.put_many({key: b"damaged"})
    step = make_step(fetch, prepare, source(model), cache)
    for claim in (None, digest("1.png")):
        assert step([message("1.png", sha256=claim)]) == plain_step()([message("1.png")])
    assert model.batches == [1]
    assert len(cache.values[key]) == 80


@pytest.mark.parametrize(
    "other",
    [MeanModel("other", side=16, width=10, space="other@1"), MeanModel(content="trained again")],
    ids=["another name", "the same name"],
)
def test_models_do_not_take_each_other_s_descriptors(other: MeanModel) -> None:
    cache = MemoryCache()
    one = MeanModel()
    messages = [message("1.png"), message("2.png", sha256=digest("2.png"))]
    for _ in range(2):
        for model in (one, other):
            assert make_step(fetch, prepare, source(model), cache)(messages) == plain_step(model)(messages)
    assert (one.batches[0], other.batches[0]) == (2, 2)
    assert len(cache.values) == 4


# The model


class Changing:
    """A source that gives another model with every batch."""

    def __init__(self, *models: MeanModel) -> None:
        self._models = list(models)

    def current(self) -> Model:
        return cast(Model, self._models.pop(0))


def test_a_new_model_of_another_size_answers_from_the_next_batch_on() -> None:
    old, new = MeanModel(), MeanModel("new", side=48, width=10, space="new@1")
    step = make_step(fetch, prepare, Changing(old, new), MemoryCache())
    for model, width in ((old, 20), (new, 10)):
        verdicts = step(MIXED)
        assert plain(verdicts) == plain(plain_step(model)(MIXED))
        done = [verdict for verdict in verdicts if isinstance(verdict, Done)]
        for verdict in done:
            (features,) = (cast(ImageFeatures, outgoing.value) for outgoing in verdict.messages)
            assert features.model == model.space
            assert features.descriptor_count == len(features.descriptors) == width
            assert cast(FeaturesRow, verdict.rows[0]).model == model.address


def test_variants_of_a_net_publish_their_common_space_and_store_their_own_name() -> None:
    (verdict,) = plain_step(MeanModel("mean-int8", space="mean@1"))([message("1.png")])
    assert isinstance(verdict, Done)
    assert cast(FeaturesRow, verdict.rows[0]).model == "mean-int8@1"
    assert cast(ImageFeatures, verdict.messages[0].value).model == "mean@1"


@pytest.mark.parametrize("shape", [(None, 3, 32, 32), (None, 32, 16, 3), (None, 20), (None, None, None, 3)])
def test_a_model_that_takes_no_pictures_is_no_fault_of_the_messages(shape: tuple[int | None, ...]) -> None:
    model = MeanModel()
    model.input_shape = shape  # type: ignore[assignment]
    with pytest.raises(Unavailable, match="mean@1 takes") as raised:
        plain_step(model)([message("1.png")])
    assert raised.value.server == "model_store"


# In shadow


def shadow_rows(verdicts: Sequence[Verdict]) -> list[ShadowFeaturesRow]:
    rows = [row for verdict in verdicts if isinstance(verdict, Done) for row in verdict.rows]
    return [row for row in rows if isinstance(row, ShadowFeaturesRow)]


def without_shadow(verdicts: Sequence[Verdict]) -> list[Any]:
    return plain(
        [
            Done(tuple(row for row in each.rows if not isinstance(row, ShadowFeaturesRow)), each.messages)
            if isinstance(each, Done)
            else each
            for each in verdicts
        ]
    )


@pytest.mark.parametrize("side", [32, 48])
@pytest.mark.parametrize("messages", [MIXED, CLAIMED], ids=["no digests", "digests"])
def test_a_shadow_computes_every_time_and_is_stored_apart(messages: list[ImageUploaded], side: int) -> None:
    model, other, counting = MeanModel(), MeanModel("other", side=side, width=10), Counting()
    step = make_step(counting.fetch, counting.prepare, source(model), MemoryCache(), shadow=source(other))
    before = inferences("shadow")
    for _ in range(2):
        verdicts = step(messages)
        assert without_shadow(verdicts) == plain(plain_step()(messages))
        found = shadow_rows(verdicts)
        assert [row.image_id for row in found] == ["1.png", "2.png", "3.png"]
        assert [(row.model, row.descriptors) for row in found] == [
            ("other@1", tuple(float(f"{np.float32(grey + n / 7):.4g}") for n in range(10)))
            for grey in (10, 20, 30)
        ]
        assert all(row.latency_ms > 0 for row in found)
    assert model.batches == [3]
    assert other.batches == [3, 3]
    assert inferences("shadow") == before + 6
    # It decodes a copy of its own only where the other's does not fit, or is not needed.
    good = [asked for asked in counting.prepared if asked[0] == picture(10)]
    assert [size for _, size in good] == ([32, 32] if side == 32 else [32, 48, 48])


class Failing(MeanModel):
    def run(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        raise RuntimeError("no such operator")


class Away:
    def current(self) -> Model:
        raise Unavailable("model_store", "connection refused")


def shadow_failures() -> float:
    return REGISTRY.get_sample_value("mesh_shadow_failures_total", {"worker": "feature-extractor"}) or 0.0


@pytest.mark.parametrize("shadow", [source(Failing("failing")), source(Failing(side=48)), Away()])
def test_a_shadow_that_fails_costs_its_own_rows_alone(shadow: Any) -> None:
    step = make_step(fetch, prepare, source(), MemoryCache(), shadow=shadow)
    before = shadow_failures()
    for _ in range(2):
        assert plain(step(MIXED)) == plain(plain_step()(MIXED))
    assert shadow_failures() == before + 2


def test_a_picture_that_only_the_shadow_cannot_decode_lacks_its_row_alone() -> None:
    def picky(data: bytes, side: int) -> NDArray[np.uint8]:
        if side == 48 and data == picture(10):
            raise Rejected("memory_exceeded", "Reading the file takes more memory than it is given.")
        if side == 48 and data == picture(20):
            raise KeyError("bug")
        return prepare(data, side)

    step = make_step(fetch, picky, source(), MemoryCache(), shadow=source(MeanModel("other", side=48)))
    for _ in range(2):
        verdicts = step(MIXED)
        assert without_shadow(verdicts) == plain(plain_step()(MIXED))
        assert [row.image_id for row in shadow_rows(verdicts)] == ["3.png"]
