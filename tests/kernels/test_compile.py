"""Every kernel compiles for every architecture without a GPU, and the record tells a launcher the truth about it.

Cubins are read by NVIDIA's own tools, which come with Triton. `pytest -s` prints the table of resources.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from fusioner_rt.gpu.kernel_contract import EXTRAS, mask_sizes, programs, resize_sizes
from kernels import compile as compiler
from kernels import instruction_count, mask_head, variants
from kernels.compile import Compiled, choose
from kernels.variants import FEATURE_TYPES, TARGETS, exists, names

ROOT = Path(__file__).parents[2]
BYTES = {"i32": 4, "fp32": 4}  # every other type is a pointer, of 8
SCRATCH = 2  # pointers behind the arguments
SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 110: 227, 120: 99}
"""KiB of shared memory a block may ask for (CUDA C++ Programming Guide, technical specifications)."""


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> list[Compiled]:
    """Every variant on the architecture of the test."""
    ptxas = compiler.knobs.nvidia.ptxas_blackwell.version
    if request.param == 110 and float(ptxas) < 13:
        pytest.skip(
            f"Triton {triton.__version__} brings the assembler of CUDA {ptxas}, which does not know Thor: CUDA 13 renamed its "
            "architecture from 10.1 to 11.0; pip install 'triton>=3.7', as the extra `export` does"
        )
    return [choose(name, request.param) for name in names() if exists(name, request.param)]


IN_CI = (90,)  # each takes ten seconds
every_architecture = pytest.mark.parametrize(
    "compiled",
    [pytest.param(target, marks=[] if target in IN_CI else pytest.mark.slow, id=f"sm_{target}") for target in TARGETS],
    indirect=True,
)


@every_architecture
def test_kernels_do_not_spill_multiply_on_tensor_cores_and_are_as_recorded(compiled: list[Compiled]) -> None:
    capability = compiled[0].capability
    recorded = [json.loads(line) for line in (ROOT / "docs/records/kernels.jsonl").read_text().splitlines()]
    rows = compiler.resource_rows(compiled)
    print("\n" + compiler.table(rows))
    again = "python -m kernels.compile --json docs/records/kernels.jsonl"
    if f"triton=={triton.__version__}" in (ROOT / "constraints.txt").read_text():  # another gives other registers
        assert rows == [row for row in recorded if row["capability"] == capability], f"write it again: {again}"
    for one in compiled:
        assert one.resources.shared <= SHARED[capability] * 1024
        if capability >= 80:
            counts = compiler.instructions(one.cubin)
            assert sum(counts.values()) > 100
            assert one.resources.spilled == counts.get("LDL", 0) == counts.get("STL", 0) == 0, one.name
            assert bool(compiler.tensor_core_instructions(one.cubin)) == one.name.startswith("maps."), one.name


@every_architecture
def test_the_record_has_the_parameters_the_cubin_has(compiled: list[Compiled], tmp_path: Path) -> None:
    for one in compiled:
        launch = compiler._launch(one, "")
        (tmp_path / "cubin").write_bytes(one.cubin)
        elf = compiler._cuobjdump("-elf", one.cubin)
        sizes_of = [BYTES.get(kind, 8) for kind in one.variant.types.values()] + [8] * SCRATCH
        expected, end = [], 0
        for ordinal, size in enumerate(sizes_of):
            offset = -(-end // size) * size
            expected.append((ordinal, offset, size))
            end = offset + size
        found = re.findall(r"Ordinal : 0x(\w+)\s+Offset\s+: 0x(\w+)\s+Size\s+: 0x(\w+)", elf)
        assert sorted(tuple(int(number, 16) for number in parameter) for parameter in found) == expected, one.name
        assert re.search(rf"^\.nv\.info\.{launch['symbol']}$|\.text\.{launch['symbol']}$", elf, re.MULTILINE)
        assert re.search(rf"^ .* {launch['symbol']}$", elf.split(".symtab")[-1], re.MULTILINE)
        threads = re.search(r"EIATTR_REQNTID\n.*\n\s+Value:\s+0x(\w+) 0x(\w+) 0x(\w+)", elf)
        assert threads, one.name
        assert [int(number, 16) for number in threads.groups()] == [launch["threads"], 1, 1]


@every_architecture
def test_normalising_rounds_the_product_and_then_the_difference(compiled: list[Compiled]) -> None:
    for one in compiled:
        if one.name.startswith("resize_"):
            counts = compiler.instructions(one.cubin)
            assert counts.get("FFMA", 0) == 0, one.name
            assert counts.get("FMUL", 0) == counts.get("FADD", 0) == (8 if one.name.endswith(".float32") else 0)


def test_a_kernel_that_may_fuse_is_seen_to_and_portable_ptx_leaves_the_driver_no_choice(tmp_path: Path) -> None:
    name = "resize_columns.float32"
    chosen = variants.variant(name, 80)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiler, "variant", lambda *_: dataclasses.replace(chosen, fused=True))
        fusing = compiler.compile_one(name, 80, chosen.tilings[0])
    assert compiler.instructions(fusing.cubin)["FFMA"] == 8
    for text, fused in ((fusing.ptx, 8), (choose(name, 80).ptx, 0)):
        (tmp_path / "kernel.ptx").write_text(text)
        assembler = [compiler.knobs.nvidia.ptxas.path, "-arch=sm_90", "--fmad=true", "kernel.ptx", "-o", "cubin"]
        subprocess.run(assembler, cwd=tmp_path, check=True)
        assert compiler.instructions((tmp_path / "cubin").read_bytes()).get("FFMA", 0) == fused


@pytest.mark.parametrize(
    "assemblers",
    [
        [("ptxas", 80), ("ptxas_blackwell", 120)],
        pytest.param([("ptxas", 87), ("ptxas", 90)], marks=pytest.mark.slow),
    ],
)
def test_portable_ptx_is_that_of_sm_80_and_has_the_entry_the_record_names(
    assemblers: list[tuple[str, int]], tmp_path: Path
) -> None:
    compiler.write(tmp_path, names(("float16",)), (80,))
    record = json.loads((tmp_path / compiler.RECORD).read_text())
    for name, kernel in record["kernels"].items():
        text = (tmp_path / kernel["ptx"]["file"]).read_text()
        assert kernel["ptx"]["target"] == "sm_80"
        assert re.search(r"^\.target sm_80$", text, re.MULTILINE), name
        assert re.search(r"^\.version 8\.0$", text, re.MULTILINE), name  # of CUDA 12.0
        for assembler, target in assemblers:
            command = [
                getattr(compiler.knobs.nvidia, assembler).path,
                f"-arch=sm_{target}",
                str(tmp_path / kernel["ptx"]["file"]),
            ]
            subprocess.run([*command, "-o", str(tmp_path / "cubin")], check=True)
        assert re.findall(r"\.entry (\w+)", text) == [kernel["ptx"]["symbol"]]
        parameters = re.findall(r"^\s*\.param \.(\w+)", text, re.MULTILINE)
        types = {"i32": "u32", "fp32": "f32"}
        assert parameters == [types.get(kind, "u64") for _, kind in kernel["arguments"]] + ["u64"] * SCRATCH
        assert {key: value for key, value in kernel["ptx"].items() if key not in ("file", "target")} == {
            key: value for key, value in kernel["targets"]["sm_80"].items() if key != "file"
        }


@pytest.mark.parametrize("capability", [89, 90])
@pytest.mark.parametrize("name", ["labels.float32.few", "labels.float16.few"])
def test_the_label_kernel_executes_at_most_45_instructions_a_pixel(name: str, capability: int) -> None:
    count = _counted(name, capability)
    assert count.pixel <= 45
    assert count.candidate <= 10
    assert count.word == 0


@pytest.mark.parametrize("capability", [89, 90])
@pytest.mark.parametrize("name", ["softmax_labels.float32.few", "softmax_labels.float16.few"])
def test_a_softmax_takes_at_most_11_instructions_a_word_and_5_more_a_pixel(name: str, capability: int) -> None:
    count, sigmoid = _counted(name, capability), _counted(name.removeprefix("softmax_"), capability)
    assert count.pixel <= sigmoid.pixel + 5
    assert count.candidate <= 10
    assert 0 < count.word <= 11


def _counted(name: str, capability: int) -> instruction_count.Count:
    one = choose(name, capability)
    code = compiler.machine_code(one.cubin)
    count = instruction_count.of_labels(code, one.tiling.constants, 32 * one.tiling.warps)
    print(count)
    return count


def test_instructions_count_as_often_as_they_are_executed() -> None:
    tile = {"TILE_ROWS": 8, "COLUMNS": 256, "ROWS": 4, "POINTS": 16}  # two passes over 18 points, two turns over rows
    lines = [
        "MOV R1, R2", "LDG.E R3, desc[UR8][R4.64]", "@P0 BRA 0x10",  # the loop over points: two instructions
        "FMUL R1, R1, R1", "FADD R1, R1, R1", "@!P1 BRA 0x40", "@P2 BRA 0x90", "STG.E desc[UR8][R2.64], R1", "BRA 0xb0",
        "@P3 STG.E desc[UR8][R2.64], R1", "@P4 STG.E desc[UR8][R2.64], R1", "ISETP.LT.AND P5, PT, R1, R2, PT",
        "@P5 BRA 0x30", "EXIT", "BRA 0xe0",
    ]  # fmt: skip
    code = [(16 * index, line) for index, line in enumerate(lines)]
    # once: MOV, EXIT, the last BRA; 2 x 2 of the points; of the rows' 10 the candidates' 2 and the masked 2 apart
    assert instruction_count.of_labels(code, tile, 2048) == (3 + 2 * 2 + 2 * 6, 2 * 2, 0)
    # by softmax the rows hold a loop of three over the words too, here the first in them
    lines = [
        *lines[:3], "MUFU.EX2 R1, R2", "FADD R1, R1, R1", "@P6 BRA 0x30", "FADD R1, R1, R1", "@!P1 BRA 0x60", "@P5 BRA 0x30",
        "EXIT",
    ]  # fmt: skip
    summing = [(16 * index, line) for index, line in enumerate(lines)]
    assert instruction_count.of_labels(summing, tile, 2048) == (2 + 2 * 2 + 2 * 1, 2 * 2, 2 * 3)
    with pytest.raises(ValueError, match="2 loops"):
        instruction_count.of_labels(code[:2] + code[3:], tile, 2048)
    with pytest.raises(ValueError, match="4 loops"):
        instruction_count.of_labels([(at, line.replace("FADD", "MUFU.EX2")) for at, line in summing], tile, 2048)


def test_the_documents_table_is_the_record() -> None:
    rows = [json.loads(line) for line in (ROOT / "docs/records/kernels.jsonl").read_text().splitlines()]
    assert [(row["kernel"], row["capability"]) for row in rows] == compiler.jobs(names())
    assert compiler.markdown(rows) in (ROOT / "docs/bundle.md").read_text(), "python -m kernels.compile --markdown"


def test_a_kernel_too_large_for_the_registers_is_seen_to_spill() -> None:
    tiling = dataclasses.replace(variants.variant("maps.float16.many", 80).tilings[0], warps=4)
    one = compiler.compile_one("maps.float16.many", 80, tiling)
    counts = compiler.instructions(one.cubin)
    assert one.resources.spilled > 0
    assert counts["LDL"] > 0
    assert counts["STL"] > 0


def test_every_variant_is_compiled_for_every_architecture_that_has_its_type() -> None:
    jobs = compiler.jobs(names())
    assert len(set(jobs)) == len(jobs) == 29 * len(TARGETS) - 3
    assert {name for name, target in jobs if target == 75} == set(names(("float16", "float32")))


def test_a_bundle_has_what_sessions_launch_and_each_extra_adds_kernels_of_its_own() -> None:
    forms = ("few", "many")
    launched = {"measure.float32", *(f"maps.float32.{form}" for form in forms)}
    launched |= {f"resize_{axis}.{dtype}" for axis in ("rows", "columns") for dtype in ("uint8", "float32")}
    launched |= {"names.float32", "names.float16"}
    launched |= {f"labels.{dtype}.{form}" for dtype in ("float32", "float16") for form in forms}
    assert set(variants.shipped()) == launched
    for extra, kernels in EXTRAS.items():
        assert set(variants.shipped([extra])) == launched | set(kernels)
        assert launched.isdisjoint(kernels)
    assert variants.shipped(EXTRAS) == names(("float16", "float32"), ("sigmoid",))


@pytest.mark.parametrize("extras", [(), ("masks",), tuple(EXTRAS)])
def test_a_bundle_that_scores_by_softmax_has_the_same_kernels_in_that_form(extras: tuple[str, ...]) -> None:
    stage_2 = ("labels", "probabilities", "masks")
    expected = [f"softmax_{name}" if name.startswith(stage_2) else name for name in variants.shipped(extras)]
    assert variants.shipped(extras, "softmax") == expected
    assert set(names()) == {*variants.shipped(EXTRAS), *variants.shipped(EXTRAS, "softmax"), *names(("bfloat16",))}


launches = st.tuples(
    st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70)),  # B, h, w
    st.sampled_from([1, 2, 31, 32, 33, 150, 1024]),
    st.tuples(st.integers(1, 2000), st.integers(1, 3000)),
    st.sampled_from(names()),
    st.sampled_from(TARGETS),
)


@given(launches)
@settings(max_examples=300, deadline=None)
def test_programs_cover_every_word_position_and_output_pixel(launch: Any) -> None:
    (_, height, width), words, size, name, target = launch
    named = mask_sizes((height, width), words, size)
    for tiling in variants.variant(name, target).tilings:
        if name.startswith("resize_"):
            written = resize_sizes(*size)
            tile, total = tiling.constants, programs(tiling.grid, written)
            across = -(-written["values"] // tile["VALUES"])  # as the kernel divides its programs
            assert total % across == 0
            assert total // across * tile["ROWS"] >= size[0] > (total // across - 1) * tile["ROWS"]
            assert across * tile["VALUES"] >= 3 * size[1]
            continue
        if name.startswith("names."):
            pixels, tile = size[0] * size[1], tiling.constants["PIXELS"]
            assert programs(tiling.grid, {"pixels": pixels}) * tile >= pixels
            continue
        tile, total = tiling.constants, programs(tiling.grid, named)
        if name.startswith("measure."):
            parts = variants.variant(name, target).constants["PARTS"]
            assert (total - parts) * tile["WORDS"] >= words > (total - parts - 1) * tile["WORDS"]
        elif name.startswith("maps."):
            positions = height * width
            gram = -(-positions // tile["GRAM_POSITIONS"])  # as the kernel divides its programs
            blocks = -(-words // tile["WORDS"])
            assert (total - gram) % blocks == 0
            assert (total - gram) // blocks * tile["POSITIONS"] >= positions
        else:
            # band b: positions from low-resolution row b - 1 up to b, without clamping
            middle = (torch.arange(size[0]) * 2 + 1) * height - size[0]
            rows = torch.bincount(middle.div(2 * size[0], rounding_mode="floor") + 1, minlength=height + 1)
            tall = tile.get("TILE_ROWS", tile["ROWS"])
            columns, row_blocks = -(-size[1] // tile["COLUMNS"]), -(-named["band_rows"] // tall)
            assert int(rows.max()) <= named["band_rows"] <= row_blocks * tall
            assert len(rows) == height + 1
            assert total == (height + 1) * row_blocks * columns


class Recorder:
    """In a kernel's place: keeps the grid and the arguments it would be launched with."""

    def __init__(self, name: str, launched: list[Any]) -> None:
        self.name, self.launched = name, launched

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        return lambda *arguments, **constants: self.launched.append((self.name, grid, arguments, constants))


TORCH = {"*fp16": "float16", "*bf16": "bfloat16", "*fp32": "float32", "*i32": "int32", "*u16": "uint16"}


@pytest.mark.parametrize("dtype", FEATURE_TYPES)
def test_grids_and_arguments_by_the_record_are_those_of_a_launch_from_torch(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Any] = []
    variant = variants.variant
    compiler.write(tmp_path, names((dtype,)), (80,))
    record = json.loads((tmp_path / compiler.RECORD).read_text())["kernels"]
    monkeypatch.setattr(mask_head, "_by_kernels", lambda _: True)
    monkeypatch.setattr(mask_head, "_tiling", lambda name, _: (80, choose(name, 80).tiling))
    monkeypatch.setattr(
        variants, "variant", lambda name, target: dataclasses.replace(variant(name, target), kernel=Recorder(name, launched))
    )  # fmt: skip
    for pictures, low, words, size in (
        (1, (5, 7), 3, (37, 123)),
        (2, (9, 1), 40, (11, 300)),
        (3, (1, 13), 1, (8, 256)),
    ):
        features, vectors = torch.zeros(pictures, *low, 32), torch.zeros(pictures, words, 32)
        maps = mask_head.score_maps(features.to(getattr(torch, dtype)), vectors.to(getattr(torch, dtype)))
        for scoring in ("sigmoid", "softmax"):
            for output in (torch.float16, torch.float32):
                mask_head.resolve(*maps, size, 0.07, 0.5, output, scoring)
                mask_head.probabilities(*maps, size, 0.07, output, scoring)
            mask_head.masks(*maps, size, 0.07, 0.5, scoring)
        assert len({name for name, *_ in launched}) == len(launched) == 2 + 2 * 5
        for name, grid, arguments, constants in launched:
            known = record[name]
            by_record = known["targets"]["sm_80"]
            assert grid == (programs(by_record["grid"], mask_sizes(low, words, size)), pictures)
            assert by_record["tile"].items() <= constants.items()
            assert 32 * constants["num_warps"] == by_record["threads"]
            for (argument, kind), given_value in zip(known["arguments"], arguments, strict=True):
                if kind in BYTES:
                    assert isinstance(given_value, int if kind == "i32" else float), (name, argument)
                else:
                    assert str(given_value.dtype) == f"torch.{TORCH[kind]}", (name, argument)
        launched.clear()


def test_other_processes_fill_the_cache_from_the_end_and_end_with_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(compiler.subprocess, "Popen", start)
    with compiler.compiling_ahead([*[("masks", 80)] * 31, ("measure.float16", 80)]):
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("measure_kernel.cubin")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not list(tmp_path.rglob("masks_kernel.cubin"))
    assert [process.poll() is not None for process in started] == [True]


def test_few_kernels_are_compiled_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(compiler.subprocess, "Popen", None)
    with compiler.compiling_ahead(compiler.jobs(names(("float32",)), (80,))):
        pass
