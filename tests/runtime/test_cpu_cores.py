"""Cores are counted by the least quota of the process's control group, of both versions, as well as by affinity."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusioner_rt import cpu_cores


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # docker run --cpus=2
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        ("0::/../x\n", {"cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/docker/1\n", {"cpu/docker/1/cpu.cfs_quota_us": "250000", "cpu/docker/1/cpu.cfs_period_us": "100000"}, 2.5),
        ("4:cpu,cpuacct:/docker/1\n", {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpuset:/x\n3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
        ("0::/\n", {"cpu.max": "many 0"}, None),
        ("0::/\n", {"cpu.max": "100 0"}, None),
        ("0::/\n", {"cpu.max": "9" * 400 + " 1"}, None),
        ("nonsense\n\n::\n", {}, None),
    ],
)  # fmt: skip
def test_the_quota_is_read_from_either_version(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_cores.quota_of_control_group(system(tmp_path, groups, files)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_cores.quota_of_control_group(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "bound", "found"), [(None, 8, 8), (2.0, 64, 2), (1.5, 64, 2), (0.1, 64, 1), (9.0, 4, 4)]
)
def test_cores_are_the_fewer_of_affinity_and_quota(
    quota: float | None, bound: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_cores, "quota_of_control_group", lambda: quota)
    monkeypatch.setattr(cpu_cores, "bound_cores", lambda: bound)
    assert cpu_cores.cores() == found


@pytest.mark.parametrize(("quota", "threads"), [(None, 0), (1.0, 1)])
def test_onnx_runtime_gets_no_more_threads_than_the_quota(
    quota: float | None, threads: int, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusioner_rt.onnx import runtime

    monkeypatch.setattr(cpu_cores, "quota_of_control_group", lambda: quota)
    monkeypatch.setattr(cpu_cores, "bound_cores", lambda: 4)
    monkeypatch.setattr(runtime, "bound_cores", lambda: 4)
    graph = runtime.OnnxRuntime("onnxruntime-cpu").load(tiny_bundle / "image.onnx")
    assert graph._session.get_session_options().intra_op_num_threads == threads
