"""What only a fresh process can show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_pictures import scene
from PIL import Image

ROOT = Path(__file__).parents[2]

SEGMENT = """
import json, sys
from fusioner_rt import Session
with Session(sys.argv[1]) as session:
    result = session.segment(sys.argv[2], "cat, sofa, red car")
    result.overlay(), result.to_coco(), result.scores
    print(json.dumps({"calls": session.text_encoder_calls, "sum": float(result.confidence.sum(dtype=float)),
                      "modules": sorted({name.split(".")[0] for name in sys.modules}),
                      "loaded": sorted(session._executor._graphs.graphs)}))
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(scene(61, 93)).save(path)
    return path


def start(*arguments: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def finish(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_segmenting_loads_no_training_framework_and_a_restart_encodes_nothing(tiny_bundle: Path, photo: Path) -> None:
    first = json.loads(finish(start("-c", SEGMENT, tiny_bundle, photo)))
    assert not {"torch", "triton", "torchvision", "transformers", "open_clip", "timm", "onnx"} & set(first["modules"])
    assert not {"training", "kernels", "export"} & set(first["modules"])
    assert first["calls"] == 3
    second = json.loads(finish(start("-c", SEGMENT, tiny_bundle, photo)))
    assert second["calls"] == 0
    assert "text" not in second["loaded"]
    assert second["sum"] == first["sum"]


def test_two_processes_may_meet_the_same_new_words_at_once(tiny_bundle: Path, photo: Path, own_cache: Path) -> None:
    both = [start("-c", SEGMENT, tiny_bundle, photo) for _ in range(2)]
    answers = [json.loads(finish(process)) for process in both]
    assert answers[0]["sum"] == answers[1]["sum"]
    assert len(list(own_cache.iterdir())) == 3  # three entries, nothing torn or left over
    assert json.loads(finish(start("-c", SEGMENT, tiny_bundle, photo)))["calls"] == 0


def test_the_package_runs_as_a_module(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    options = ["--words", "cat", "--engine", tiny_bundle, "--out", tmp_path / "out"]
    said = finish(start("-m", "fusioner_rt", "segment", photo, *options))
    assert said.startswith(f"{photo}: ")
    failed = start("-m", "fusioner_rt", "segment", tmp_path / "absent.jpg", *options)
    out, err = failed.communicate(timeout=60)
    assert failed.returncode == 10
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_help_and_version_wait_for_no_library() -> None:
    script = "import sys, fusioner_rt.cli as cli\ntry: cli.main([{!r}])\nexcept SystemExit: pass\nprint(*sys.modules)"
    for option in ("--help", "--version"):
        loaded = finish(start("-c", script.format(option))).split()
        assert not {"numpy", "PIL", "onnxruntime", "tokenizers"} & set(loaded)


def test_arrays_need_no_file(tiny_bundle: Path) -> None:
    script = (
        "import sys, numpy as np\nfrom fusioner_rt import Session\n"
        "print(Session(sys.argv[1], cache=False).segment(np.zeros((1, 1, 3), np.uint8), 'cat').labels.shape)"
    )
    assert finish(start("-c", script, tiny_bundle)).strip() == str(np.zeros((1, 1)).shape)


def test_nothing_is_written_to_the_users_home_but_the_words_cache(
    photo: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """ONNX Runtime keeps a device id and a queue of events there, unless its telemetry is off before it is imported."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "FUSIONER_CACHE": str(tmp_path / "words")}
    done = subprocess.run(
        [sys.executable, "-c", SEGMENT, str(tiny_bundle), str(photo)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []


def test_who_wants_onnx_runtimes_telemetry_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, fusioner_rt; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in ((None, "1"), ("0", "0")):
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        environment |= {"ORT_DISABLE_TELEMETRY": given} if given else {}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
