"""Which plan of a bundle is taken, as laws over every version, GPU and set of plans."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusioner_rt.errors import FusionerError, PlanForAnotherGpu, PlanForAnotherVersion, PlanMissing
from fusioner_rt.json_fields import Field
from fusioner_rt.plans import FLAVOURS, Plan
from fusioner_rt.tensorrt.preflight import choose

CAPABILITIES = [(8, 0), (8, 9), (12, 0)]  # few of each, so that plans meet that differ in one thing
VERSIONS = ["10.9.0.34", "11.4.0.106", "11.10.0.2"]

capabilities = st.sampled_from(CAPABILITIES)
plans = st.builds(
    Plan,
    file=st.integers(0, 999).map(lambda number: Path(f"{number}.plan")),
    graph=st.sampled_from(["image_fusion", "image_fusion", "text"]),
    flavour=st.sampled_from(["tensorrt", "tensorrt", "tensorrt-rtx"]),
    version=st.sampled_from(VERSIONS),
    capability=st.builds(
        lambda number, later: f"{number[0]}.{number[1]}{later}", capabilities, st.sampled_from(["", "+"])
    ),
    version_compatible=st.booleans(),
    precision=st.just("fp16"),
)


def bundle_of(*held: Plan) -> Any:
    return SimpleNamespace(
        folder=Path("engines/x"),
        plans=held,
        precision="fp16",
    )


def plan(
    capability: str = "8.0+", version: str = VERSIONS[-1], compatible: bool = False, flavour: str = "tensorrt"
) -> Plan:
    return Plan(Path(f"{capability}-{version}.plan"), "image_fusion", flavour, version, capability, compatible, "fp16")


def outcome(held: list[Plan], flavour: str, version: str, capability: tuple[int, int]) -> Plan | FusionerError:
    try:
        return choose(bundle_of(*held), flavour, "image_fusion", version, capability, "GPU 0")
    except FusionerError as error:
        return error


@given(st.lists(plans, max_size=8), st.sampled_from(sorted(FLAVOURS)), capabilities, st.sampled_from(VERSIONS))
def test_a_plan_is_taken_if_and_only_if_one_is_for_this_graph_gpu_and_version(
    held: list[Plan], flavour: str, capability: tuple[int, int], version: str
) -> None:
    of_it = [one for one in held if (one.flavour, one.graph) == (flavour, "image_fusion")]
    here = [one for one in of_it if one.runs_on(capability)]
    fit = [one for one in here if one.loads_with(version)]
    found = outcome(held, flavour, version, capability)
    if isinstance(found, Plan):
        assert found in fit
        exact = [one for one in fit if not one.capability.endswith("+")]
        assert not exact or found in exact  # one made for this GPU before a portable one
        alike = [one.version for one in fit if one.capability == found.capability and not one.version_compatible]
        assert not alike or not found.version_compatible
        return
    expected = PlanMissing if not of_it else PlanForAnotherGpu if not here else PlanForAnotherVersion
    assert type(found) is expected
    assert not fit
    named = {PlanMissing: [f"--backend {flavour}"], PlanForAnotherGpu: [one.gpus for one in of_it],
             PlanForAnotherVersion: [one.version for one in here]}  # fmt: skip
    assert all(part in str(found) for part in named[expected])


@given(st.lists(plans, min_size=2, max_size=8), capabilities, st.sampled_from(VERSIONS))
def test_the_order_in_a_manifest_decides_nothing(held: list[Plan], capability: tuple[int, int], version: str) -> None:
    held = [replace(one, flavour="tensorrt", graph="image_fusion") for one in held]

    def said(some: list[Plan]) -> Any:
        found = outcome(some, "tensorrt", version, capability)
        return (found.capability, found.version, found.version_compatible) if isinstance(found, Plan) else str(found)

    assert said(held) == said(held[::-1])


@given(capabilities, capabilities)
def test_a_portable_plan_runs_on_its_capability_and_later_ones_another_on_its_own(
    built: tuple[int, int], here: tuple[int, int]
) -> None:
    label = f"{built[0]}.{built[1]}"
    assert plan(f"{label}+").runs_on(here) == (here >= built)
    assert plan(label).runs_on(here) == (here == built)


def test_versions_are_compared_as_numbers_and_only_compatible_plans_load_with_others() -> None:
    assert plan(version="10.9.0.34").loads_with("10.9.0.34")
    assert not plan(version="10.9.0.34").loads_with("10.9.0.35")
    compatible = plan(version="10.9.0.34", compatible=True)
    assert compatible.loads_with("10.16.1.11")
    assert not compatible.loads_with("10.8.9.99")
    assert not compatible.loads_with("11.4.0.106")


def test_the_nearest_portable_plan_and_the_plan_bound_to_its_version_come_first() -> None:
    held = [plan("8.0+"), plan("8.6+"), plan("8.6+", compatible=True)]
    chosen = choose(bundle_of(*held), "tensorrt", "image_fusion", VERSIONS[-1], (8, 9), "GPU 0")
    assert (chosen.capability, chosen.version_compatible) == ("8.6+", False)


def test_what_to_do_about_another_version_is_the_version_to_install_or_the_build() -> None:
    held = plan(version="1.6.0.1", flavour="tensorrt-rtx"), plan(version="1.10.0.3", flavour="tensorrt-rtx")
    says = r"built with version 1\.6\.0\.1, 1\.10\.0\.3, and 1\.7\.1\.116 .*pip install tensorrt-rtx==1\.10\.0\.3\), or build"
    with pytest.raises(PlanForAnotherVersion, match=says):
        choose(bundle_of(*held), "tensorrt-rtx", "image_fusion", "1.7.1.116", (8, 9), "GPU 0")


def test_what_to_do_about_another_gpu_is_a_build_that_serves_it() -> None:
    def cure(flavour: str, capability: tuple[int, int]) -> str:
        with pytest.raises(PlanForAnotherGpu) as caught:
            choose(bundle_of(plan("12.0", flavour=flavour)), flavour, "image_fusion", "1", capability, "GPU 0")
        return str(caught.value).partition("; ")[2]

    assert cure("tensorrt-rtx", (8, 9)).endswith("--backend tensorrt-rtx")  # a portable plan
    assert cure("tensorrt-rtx", (7, 5)).endswith("--backend tensorrt-rtx --for sm_75")  # which begins at 8.0
    assert "on the machine with this GPU: " in cure("tensorrt", (8, 9))


@pytest.mark.parametrize("capability", [(7, 0), (8, 7), (9, 0), (10, 0)])
def test_where_tensorrt_rtx_lists_no_such_gpu_what_runs_there_is_named(capability: tuple[int, int]) -> None:
    with pytest.raises(PlanForAnotherGpu) as caught:
        choose(
            bundle_of(plan("12.0", flavour="tensorrt-rtx")), "tensorrt-rtx", "image_fusion", "1", capability, "GPU 0"
        )
    lists = (
        f"TensorRT-RTX lists 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 and not {capability[0]}.{capability[1]}: use full TensorRT"
    )
    assert lists in str(caught.value)
    assert str(caught.value).endswith("add_plans.py engines/x --backend tensorrt, or choose onnxruntime-cuda")


def test_what_a_portable_plan_runs_on_is_said_by_name_where_tensorrt_rtx_lists_it() -> None:
    assert plan("8.0+", flavour="tensorrt-rtx").gpus == "8.0, 8.6, 8.9, 12.0, 12.1"
    assert plan("8.9+", flavour="tensorrt-rtx").gpus == "8.9, 12.0, 12.1"
    assert plan("8.9", flavour="tensorrt-rtx").gpus == plan("8.9").gpus == "8.9"
    assert plan("8.0+").gpus == "8.0 and later"  # full TensorRT's


@pytest.mark.parametrize("capability", ["8", "sm_89", "8.x", "8.9.0", "", "8.0++", "-8.0"])
def test_a_manifest_with_a_capability_that_is_none_is_malformed(capability: str) -> None:
    entry = {
        "file": "a.plan",
        "graph": "text",
        "flavour": "tensorrt",
        "version": "11",
        "compute_capability": capability,
        "version_compatible": False,
        "precision": "fp16",
    }
    with pytest.raises(ValueError, match="is no compute capability"):
        Plan.parse(Path(), Field(entry))
    read = Plan.parse(Path("x"), Field({**entry, "compute_capability": "8.9"}))
    assert read == Plan(Path("x/a.plan"), "text", "tensorrt", "11", "8.9", False, "fp16")
