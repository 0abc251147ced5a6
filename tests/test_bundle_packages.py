"""Packages that hold bundles: the demonstration's, and one that is made as docs/bundle.md tells."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import fusioner_rt
from fusioner_rt.bundle import Bundle, find_bundle, locate_bundle
from fusioner_rt.errors import BundleFileAltered
from fusioner_rt.manifest import MANIFEST

ROOT = Path(__file__).parents[1]
DEMONSTRATION = ROOT / "models/demo"
PAGE = (ROOT / "docs/bundle.md").read_text()


def build(project: Path, kind: str, out: Path) -> Path:
    """What hatchling packs, built without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the demonstration's, built from its sdist as an index would have it. It is read-only."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("demonstration")
    with tarfile.open(build(DEMONSTRATION, "sdist", folder / "sdist")) as packed:
        packed.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    zipfile.ZipFile(build(source, "wheel", folder / "wheel")).extractall(folder / "site")
    for path in [*(folder / "site").rglob("*"), folder / "site"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder / "site"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is an empty one, of a user who has fetched nothing."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("FUSIONER_ENGINE", raising=False)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.fixture
def mine(made_bundle: Path, tmp_path: Path) -> Path:
    """A folder of packages with one that is made as the page tells."""
    pytest.importorskip("hatchling")
    (project,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    source = tmp_path / "source"
    shutil.copytree(made_bundle, source / "engines/mine")
    (source / "pyproject.toml").write_text(project)
    (source / "my_bundles").mkdir()
    (source / "my_bundles/__init__.py").write_text("raise ImportError('nothing of it is imported')")
    zipfile.ZipFile(build(source, "wheel", tmp_path / "wheel")).extractall(tmp_path / "site")
    return tmp_path / "site"


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_the_demonstrations_package_holds_all_of_its_bundle_and_no_checkpoint(site: Path) -> None:
    installed = site / "fusioner_rt_demo/bundle"
    assert Bundle.open(installed).files.keys() == {
        installed / file.relative_to(DEMONSTRATION / "bundle") for file in Bundle.open(DEMONSTRATION / "bundle").files
    }
    assert not [path for path in site.rglob("*") if "checkpoint" in path.name or path.suffix == ".safetensors"]
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"fusioner_rt_demo"}
    (licence,) = site.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_it_has_the_runtimes_version_and_pulls_nothing() -> None:
    project = tomllib.loads((DEMONSTRATION / "pyproject.toml").read_text())["project"]
    assert project["version"] == fusioner_rt.__version__
    assert "dependencies" not in project


def test_a_picture_is_segmented_in_an_empty_folder_by_the_installed_bundle(site: Path, empty: Path) -> None:
    before = files(site)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    picture = ROOT / "docs/pictures/cat.jpg"
    for command in (f"segment {picture} --words 'cat, sofa'", "info"):
        done = subprocess.run(
            [sys.executable, "-m", "fusioner_rt", *shlex.split(command)],
            cwd=empty, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (empty / "output/cat.overlay.jpg").is_file()
    assert f"folder       {site}/fusioner_rt_demo/bundle" in done.stdout
    assert "found        none was named; demo, installed by the package fusioner-rt-demo" in done.stdout
    assert files(site) == before


def test_a_package_made_as_the_page_tells_is_found_before_the_demonstration_and_not_imported(
    site: Path, mine: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    assert find_bundle() == find_bundle("demo") == site / "fusioner_rt_demo/bundle"
    monkeypatch.syspath_prepend(str(mine))
    assert find_bundle("demo") == site / "fusioner_rt_demo/bundle"
    found = locate_bundle()
    assert found.folder == find_bundle("mine") == mine / "my_bundles/mine"
    Bundle.open(found.folder)
    assert "mine, installed by the package my-bundles; there are also demo" in found.why
    assert not {"fusioner_rt_demo", "my_bundles"} & sys.modules.keys()

    (found.folder / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleFileAltered, match="install the package my-bundles again"):
        Bundle.open(find_bundle())


def test_a_package_that_is_installed_from_its_folder_is_found_there(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As editable installations are: the package's record lies in one folder, its module in another."""
    record = tmp_path / "site/my_bundles-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: my-bundles\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[fusioner_rt.bundles]\na = my_bundles.a\nb = my_bundles.b\nc = gone\n")
    for name in ("a", "b"):
        (tmp_path / "source/my_bundles" / name).mkdir(parents=True)
        (tmp_path / "source/my_bundles" / name / MANIFEST).touch()
    (tmp_path / "source/my_bundles/__init__.py").touch()
    for folder in ("source", "site"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    assert find_bundle("b") == tmp_path / "source/my_bundles/b"
    assert find_bundle() == tmp_path / "source/my_bundles/a"
    assert find_bundle("c") == Path("c")


def test_the_pages_commands_pack_fetch_and_use_a_bundle(empty: Path) -> None:
    section = PAGE.partition("#### By URL")[2].partition("\n### ")[0]
    (script,) = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    for name in ("docs", "models"):
        (empty / name).symlink_to(ROOT / name)
    said = ""
    for line in script.splitlines():
        program, *rest = shlex.split(line, comments=True)
        command = [sys.executable, "-m", "fusioner_rt"] if program == "fusioner-rt" else [program]
        done = subprocess.run([*command, *rest], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    digest, printed = re.findall(r"\b[0-9a-f]{64}\b", said)
    assert digest == printed
    assert "docs/pictures/cat.jpg: cat " in said
