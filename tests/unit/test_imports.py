"""What a process loads, since each module that it does not need is memory that it keeps."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from visionmesh.settings import ROOT

LOCKS = ROOT / "requirements"
SERVICES = sorted(path.parent for path in (ROOT / "services").glob("*/__main__.py"))
OURS = {"visionmesh", *(path.name for path in SERVICES)}


def loaded_by(program: str) -> set[str]:
    """The modules of a new interpreter after it ran a program."""
    program = f"import sys; sys.path[:] = {sys.path!r}\n{program}\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


def test_the_object_store_loads_no_cryptography_of_the_admin_interface() -> None:
    assert {"Crypto", "argon2", "minio.minioadmin"}.isdisjoint(loaded_by("import visionmesh.object_store"))


def test_the_admin_interface_is_there_for_who_asks_for_it() -> None:
    loaded = loaded_by("import visionmesh.object_store; from minio.minioadmin import MinioAdmin")
    assert "Crypto" in loaded


@pytest.mark.parametrize("line", ["", "from minio.minioadmin import MinioAdmin, SomethingNew"])
def test_another_release_of_minio_is_imported_too(tmp_path: Path, line: str) -> None:
    (tmp_path / "minio").mkdir()
    (tmp_path / "minio" / "__init__.py").write_text(f"{line}\nMinio = 1")
    (tmp_path / "minio" / "minioadmin.py").write_text("MinioAdmin = SomethingNew = 2")
    program = (
        f"sys.path.insert(0, {str(tmp_path)!r})\nimport visionmesh.lean_minio, minio; assert minio.Minio == 1"
    )
    assert ("minio.minioadmin" in loaded_by(program)) == bool(line)


def test_pictures_load_no_codecs_of_heif() -> None:
    assert "pillow_heif" not in loaded_by("import visionmesh.images")


@pytest.mark.parametrize("module", ["numpy", "cv2", "PIL", "zxingcpp", "onnxruntime"])
def test_the_process_of_the_qr_decoder_loads_no_decoder(module: str) -> None:
    assert module not in loaded_by("import qr_decoder.__main__")


def test_ultralight_reads_without_opencv() -> None:
    program = """
import io, pathlib, segno
from qr_decoder.reading import Asked, read_one
file = io.BytesIO()
segno.make("no OpenCV", micro=False).save(file, kind="png", scale=4)
found = read_one(Asked(file.getvalue(), "ultralight", 2000, pathlib.Path("/nowhere")))
assert [code.content for code in found.codes] == ["no OpenCV"], found
"""
    loaded = loaded_by(program)
    assert "pyzbar" in loaded
    assert {"cv2", "onnxruntime"}.isdisjoint(loaded)


def test_the_cascade_reads_without_masked_arrays() -> None:
    program = """
import numpy, segno
from qr_decoder import domain
modules = numpy.array([list(row) for row in segno.make("spoilt", micro=False).matrix], numpy.uint8)
modules[9:, 9:] = 0
picture = numpy.kron(numpy.pad(1 - modules, 4, constant_values=1), numpy.full((8, 8), 255, numpy.uint8))
assert domain.read(picture, profile="light", budget_ms=1e6).levels[-1] == "worn"
"""
    assert "numpy.ma" not in loaded_by(program)


def test_the_domain_has_what_it_names() -> None:
    from qr_decoder import domain

    assert all(getattr(domain, name) is not None for name in domain.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        domain.nothing  # noqa: B018


def test_ultralight_has_the_levels_of_the_cascade() -> None:
    from qr_decoder import domain
    from qr_decoder.domain import ultralight

    assert {name: number for name, (number, _) in ultralight.LEVELS.items()} == {
        name: domain.NUMBERS[name] for name in domain.PROFILES["ultralight"]
    }


# What the image of ingest-api is for besides, by the commands of docker-compose.yml and docs/operations.md.
ONE_SHOTS = ("accounts", "backup", "database", "kafka", "object_store", "publishing", "reader_role")


@pytest.mark.parametrize(
    ("lock", "modules"),
    [
        ("ingest-api", ("ingest_api.__main__", *(f"visionmesh.{name}" for name in ONE_SHOTS))),
        *(
            (path.name.replace("_", "-"), (f"{path.name}.__main__",))
            for path in SERVICES
            if path.name != "ingest_api"
        ),
    ],
)
def test_a_service_starts_with_what_its_lock_names(lock: str, modules: tuple[str, ...]) -> None:
    named = re.findall(r"^([A-Za-z0-9._-]+)==", (LOCKS / f"{lock}.txt").read_text(), re.MULTILINE)
    locked = {canonical(name) for name in named}
    absent = sorted(
        module
        for module, of in packages_distributions().items()
        if module not in OURS and locked.isdisjoint(map(canonical, of))
    )
    assert "pytest" in absent
    # As in its image, where those who can do without something go on without it.
    loaded_by(f"sys.modules |= dict.fromkeys({absent!r})\nimport {', '.join(modules)}")


def canonical(name: str) -> str:
    """A distribution's name as in a lock."""
    return re.sub(r"[-_.]+", "-", name).lower()
