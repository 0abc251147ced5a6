"""The images' Dockerfiles: linted, and their steps run where there is no Docker; compose.yaml as Docker Compose reads it.

Run by `make containers`, as root. docs/serve.md says what this does not prove.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_steps import Container, Image, build, instructions, is_sent

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.prefix, "bin")
DOCKERFILES = ["Dockerfile", "Dockerfile.nvidia"]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with tempfile.TemporaryDirectory() as folder:  # some 600 MB: pytest would keep it
        yield build(ROOT / "Dockerfile", Path(folder))


@pytest.fixture
def container(image: Image, tmp_path: Path) -> Iterator[Container]:
    """The image as compose.yaml runs it: only its volume can be written to."""
    running = Container(image, tmp_path / "log", ["/cache"])
    yield running
    running.kill()


def wait_until_healthy(container: Container) -> None:
    until = time.monotonic() + 60
    while container.execute(container.image.health_command):
        assert not container.ended
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_have_no_complaint_of_hadolint(name: str) -> None:
    done = subprocess.run([TOOLS / "hadolint", ROOT / name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_serves_as_nobody_and_ends_by_sigterm(container: Container, tmp_path: Path) -> None:
    wait_until_healthy(container)
    status = container.status()
    assert status["NSpid"].split()[-1] == "1"
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"10001"}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert container.execute(["touch", "/opt/fusioner-rt/here"]) != 0  # its root is read-only

    form = ["-F", f"picture=@{ROOT}/docs/pictures/cat.jpg", "-F", "words=cat"]
    answer = json.loads(container.ask("curl", "-sf", "http://127.0.0.1:8080/v1/segment", *form))
    assert [word["word"] for word in answer["words"] if word["area"]] == ["cat"]
    assert list(Path(f"{container.image.root}.volumes/cache").glob("*.word"))  # which the volume keeps
    assert b"fusioner_requests_total" in container.ask("curl", "-sf", "http://127.0.0.1:8080/metrics")

    assert container.stop(signal.SIGTERM, 30) == 0
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("{")]
    warned, serving = lines
    assert "has no token; set FUSIONER_TOKEN" in warned
    assert serving == "fusioner-rt: serving on http://0.0.0.0:8080"


def test_the_image_has_no_pip_no_compiler_no_checkout(image: Image) -> None:
    installed = {path.name for path in (image.root / "opt/fusioner-rt/lib/python3.11/site-packages").iterdir()}
    assert {"fusioner_rt", "fusioner_rt_demo", "onnxruntime", "uvicorn"} <= installed
    assert not {"pip", "torch", "hatchling", "tests", "export"} & installed
    assert not (image.root / "source").exists()


def test_the_health_check_fails_where_nothing_answers(image: Image) -> None:
    address, command = "'127.0.0.1', 8080", image.health_command
    assert address in command[-1]
    free = [*command[:-1], command[-1].replace(address, "'127.0.0.1', 1")]
    assert subprocess.run([sys.executable, *free[1:]], capture_output=True).returncode != 0


def test_the_image_for_nvidia_resolves_to_one_onnxruntime_with_cuda_and_cudnn(tmp_path: Path) -> None:
    """What its pip is asked for, by uv, which reads descriptions alone: pip would download 1.6 GB to say the same."""
    steps = instructions((ROOT / "Dockerfile.nvidia").read_text())
    (extras,) = (arguments.removeprefix("EXTRAS=") for name, arguments in steps if name == "ARG")
    (asked,) = (
        arguments.partition(" install ")[2]
        for name, arguments in steps
        if " install -" in arguments and "pip" in arguments
    )
    for chosen in (extras, "gpu,tensorrt-rtx,serve"):
        done = subprocess.run(
            [TOOLS / "uv", "pip", "install", "--dry-run", "--python", sys.executable, "--target", tmp_path / "none",
             *shlex.split(asked.replace("${EXTRAS}", chosen))],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        names = set(re.findall(r"^ \+ ([\w-]+)==", done.stderr.replace(" @ ", "=="), re.MULTILINE))
        assert {"fusioner-rt", "fusioner-rt-demo", "onnxruntime-gpu", "starlette", "uvicorn", "cuda-core"} <= names
        assert "onnxruntime" not in names
        assert any(name.startswith("nvidia-cudnn") for name in names)
        assert any(name.startswith("tensorrt-rtx") for name in names) is (chosen != extras)


def test_the_images_differ_in_packages_and_drivers_alone() -> None:
    cpu, nvidia = (instructions((ROOT / name).read_text()) for name in DOCKERFILES)
    assert [name for name, arguments in cpu if (name, arguments) not in nvidia] == ["RUN", "ENV", "HEALTHCHECK"]
    assert [name for name, arguments in nvidia if (name, arguments) not in cpu] == ["ARG", "RUN", "ENV", "HEALTHCHECK"]
    (checks, further) = (dict(steps)["HEALTHCHECK"].partition("CMD")[2] for steps in (cpu, nvidia))
    assert checks == further
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in dict(nvidia)["ENV"]


def test_the_context_holds_what_is_packed_alone() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for name in ("pyproject.toml", "fusioner_rt/serve/page/index.html", "models/demo/bundle/manifest.json"):
        assert is_sent(name, rules), name
    for name in (
        ".git/config", ".env", "output/masks.json", "engines/mine/weights.bin", "models/other/weights.bin",
        "models/demo/checkpoint/weights.safetensors", "fusioner_rt/__pycache__/session.cpython-311.pyc",
    ):  # fmt: skip
        assert not is_sent(name, rules), name


def composed(*further: str, **environment: str) -> Any:
    """compose.yaml as Docker Compose reads it."""
    files = [part for name in ("compose.yaml", *further) for part in ("-f", name)]
    done = subprocess.run(
        [TOOLS / "docker-compose", *files, "config"], cwd=ROOT, check=True, capture_output=True, env={**os.environ, **environment}
    )  # fmt: skip
    return yaml.safe_load(done.stdout)


def test_compose_runs_the_service_and_what_reads_its_metrics() -> None:
    services = composed()["services"]
    assert services.keys() == {"fusioner-rt", "prometheus"}
    service, prometheus = services["fusioner-rt"], services["prometheus"]
    assert service["build"]["context"] == str(ROOT)
    assert service["environment"].get("FUSIONER_TOKEN") is None  # the service refuses an empty one
    assert composed(FUSIONER_TOKEN="secret")["services"]["fusioner-rt"]["environment"] == {"FUSIONER_TOKEN": "secret"}
    assert {port["host_ip"] for one in services.values() for port in one["ports"]} == {"127.0.0.1"}
    assert [volume["target"] for volume in service["volumes"]] == ["/cache"]
    (config,) = (volume for volume in prometheus["volumes"] if volume["type"] == "bind")
    assert config["target"] == "/etc/prometheus/prometheus.yml"  # what the image reads by default
    (job,) = yaml.safe_load(Path(config["source"]).read_text())["scrape_configs"]
    ((target,),) = (one["targets"] for one in job["static_configs"])
    assert target == f"fusioner-rt:{service['ports'][0]['target']}"
    assert job.get("metrics_path", "/metrics") == "/metrics"


def test_compose_has_a_gpu_where_it_is_asked_for_one() -> None:
    service = composed("containers/nvidia.yaml")["services"]["fusioner-rt"]
    assert service["build"] == {"context": str(ROOT), "dockerfile": "Dockerfile.nvidia"}
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_containers_are_given_the_time_that_the_service_takes_to_end() -> None:
    from fusioner_rt.serve.settings import Settings

    grace = composed()["services"]["fusioner-rt"]["stop_grace_period"]
    (seconds,) = re.fullmatch(r"(\d+)s", grace).groups()  # type: ignore[union-attr]
    assert int(seconds) >= Settings().deadline + 5  # as listening.run sets it
