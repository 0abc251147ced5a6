"""What the runtime's tests share: a cache of their own, a picture, and bundles with another manifest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import scene

from fusioner_rt.bundle import write_manifest
from fusioner_rt.manifest import MANIFEST


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache, or finds the user's engine."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FUSIONER_CACHE", str(folder))
    monkeypatch.delenv("FUSIONER_ENGINE", raising=False)
    return folder


@pytest.fixture
def picture() -> np.ndarray:
    return scene(61, 93)


@pytest.fixture
def changed_bundle(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny bundle with manifest fields replaced: changed_bundle(profiles={"words": {...}})."""

    def change(**fields: Any) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(tiny_bundle, folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, value in fields.items():
            old = manifest.get(name)
            manifest[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        write_manifest(folder, manifest)
        return folder

    return change
