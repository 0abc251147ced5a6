"""Ray on this machine, once for all tests."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray

import fusioner_rt.ray  # noqa: F401  # before Ray is started: it turns off its reports


@pytest.fixture(scope="session", autouse=True)
def cluster(no_users_cache: None) -> Iterator[None]:
    """Two cores, whatever the machine has. The actors have the tests' cache of words, which is made before."""
    folder = tempfile.mkdtemp(prefix="ray-tests-")  # sockets have short names
    ray.init(
        address="local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 << 20,
        logging_level=logging.ERROR, log_to_driver=False, _temp_dir=folder,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
