"""Compiles the mask head's and preprocessing's kernels without a GPU: cubins for every architecture, PTX for those to come.

  python -m kernels.compile                       # the resource table of every kernel on every architecture (--table)
  python -m kernels.compile --out DIR             # also writes cubins, PTX and the ABI record, as in a bundle
  python -m kernels.compile --json docs/records/kernels.jsonl

The record says all that a launcher must know (docs/bundle.md); `fusioner_rt` launches by it without Triton or torch.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import instruction_count
from kernels.variants import TARGETS, Tiling, Variant, exists, names, variant

ABI_VERSION = 2
RECORD = "abi.json"
PTX_TARGET = 80
"""The PTX of this capability runs on every later one; Triton's PTX for 90 and above is tied to its architecture."""
PTX_VERSION = 80
"""Of the instruction set that PTX is written in: what drivers of CUDA 12.0 and later read. Triton's own would be that of
its assembler, of CUDA 12.8."""

_REGISTERS = 65536  # of a multiprocessor, on all of TARGETS
# KiB that one block may ask for, and resident warps of a multiprocessor
_SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 110: 227, 120: 99}
_WARPS = {75: 32, 80: 64, 86: 48, 87: 48, 89: 48, 90: 64, 100: 64, 110: 48, 120: 48}
_ENOUGH_WARPS = 8

_MAX_PROCESSES = 8
_JOBS_A_PROCESS = 16  # about ten seconds of work; starting a process takes two
_AHEAD = "import sys; from kernels.compile import choose; [choose(name, int(target)) for name, target in (job.split('@') for job in sys.argv[1:])]"


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes. spilled: bytes of local memory a thread needs; shared: bytes a block.

    warps: of a multiprocessor, resident at once.
    """

    registers: int
    spilled: int
    shared: int
    warps: int


@dataclass(frozen=True)
class Compiled:
    """A variant on one architecture, with the tiling that was chosen for it."""

    name: str
    capability: int
    tiling: Tiling
    variant: Variant
    symbol: str
    cubin: bytes
    ptx: str
    resources: Resources


@functools.lru_cache(maxsize=256)
def choose(name: str, capability: int) -> Compiled:
    """The first tiling of a variant that neither spills nor leaves a multiprocessor short of warps.

    name: one of `kernels.variants.names()`. capability: one of TARGETS. Where none is free of spills (Turing, which has
    no tensor-core products in Triton), the one that spills least.
    """
    compiled = []
    for tiling in variant(name, capability).tilings:
        one = compile_one(name, capability, tiling)
        if not one.resources.spilled and one.resources.warps >= _ENOUGH_WARPS:
            return one
        compiled.append(one)
    return min(compiled, key=lambda one: (one.resources.spilled, -one.resources.warps))


def compile_one(name: str, capability: int, tiling: Tiling) -> Compiled:
    """One variant, one architecture, one tiling. Raises RuntimeError where the kernel asks for more than a launch gives."""
    chosen = variant(name, capability)
    arguments = chosen.kernel.arg_names
    source = ASTSource(
        chosen.kernel,
        {argument: chosen.types.get(argument, "constexpr") for argument in arguments},
        constexprs={**chosen.constants, **tiling.constants},
        attrs={(arguments.index(argument),): [["tt.divisibility", 16]] for argument in chosen.multiples},
    )
    # fused multiply-add by name: a later Triton changes the default
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": chosen.fused}
    if capability == PTX_TARGET:
        options["ptx_version"] = PTX_VERSION
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    meta = built.metadata
    if meta.global_scratch_size or meta.profile_scratch_size or meta.num_ctas != 1 or meta.launch_cooperative_grid:
        raise RuntimeError(
            f"{name} for sm_{capability}: needs scratch memory or a cluster, which no launcher here gives"
        )
    parameters = re.search(rf"\.entry {meta.name}\((.*?)\)", built.asm["ptx"], re.DOTALL)
    if parameters is None or parameters[1].count(".param") != len(chosen.types) + 2:
        raise RuntimeError(f"{name}: the kernel's parameters are not its arguments and two scratch pointers")
    resources = _resources(built.asm["cubin"], capability, meta.shared, tiling.warps)
    return Compiled(name, capability, tiling, chosen, meta.name, built.asm["cubin"], built.asm["ptx"], resources)


@functools.lru_cache(maxsize=256)
def machine_code(cubin: bytes) -> list[tuple[int, str]]:
    """Address and text of every instruction of a cubin: [(0, "MOV R1, c[0x0][0x28]"), ...]."""
    found = re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(\S.*?)\s*;", _cuobjdump("-sass", cubin), re.MULTILINE)
    return [(int(address, 16), text) for address, text in found]


def instructions(cubin: bytes) -> dict[str, int]:
    """How often every instruction, without its modifiers, stands in a cubin's machine code: {"HMMA": 16, ...}."""
    counts: dict[str, int] = {}
    for _, text in machine_code(cubin):
        found = re.match(r"(?:@!?U?P\w+ )?\s*([A-Z]\w*)", text)
        if found:
            counts[found[1]] = counts.get(found[1], 0) + 1
    return counts


def tensor_core_instructions(cubin: bytes) -> int:
    """How many there are in a cubin's machine code."""
    # HMMA: Ampere, Ada, consumer Blackwell; HGMMA: Hopper; UTCHMMA: data-centre Blackwell
    return sum(instructions(cubin).get(name, 0) for name in ("HMMA", "HGMMA", "UTCHMMA"))


def _resources(cubin: bytes, capability: int, shared: int, warps: int) -> Resources:
    usage = _cuobjdump("-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", usage)
    if not found:
        raise RuntimeError(f"cuobjdump reported no resources: {usage[:200]}")
    registers, stack, local = (int(number) for number in found.groups())
    of_registers = _REGISTERS // (-(-registers // 8) * 8 * 32) // warps * warps
    of_shared = _SHARED[capability] * 1024 // (shared + 1024) * warps  # the system keeps 1 KiB a block
    return Resources(registers, stack + local, shared, min(_WARPS[capability], of_registers, of_shared))


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [knobs.nvidia.cuobjdump.path, option, file.name],
            capture_output=True,
            text=True,
            env={"PATH": str(Path(knobs.nvidia.nvdisasm.path).parent)},
        )
    if done.returncode:
        raise RuntimeError(f"cuobjdump {option} failed: {done.stderr.strip()[:200]}")
    return done.stdout


def jobs(chosen: Sequence[str], targets: Sequence[int] = TARGETS) -> list[tuple[str, int]]:
    """Each variant's name and each capability it is to be compiled for, in the order in which `write` does it."""
    return [(name, target) for name in chosen for target in targets if exists(name, target)]


@contextlib.contextmanager
def compiling_ahead(jobs: Sequence[tuple[str, int]]) -> Iterator[None]:
    """Other processes, one a core, fill Triton's cache from the end of the list while this one works from its front.

    They answer nothing. What they have not compiled when this process comes to it, it compiles itself, so that their failure
    costs time alone.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others = min(cores, _MAX_PROCESSES, len(jobs) // _JOBS_A_PROCESS) - 1
    last_first = [f"{name}@{target}" for name, target in reversed(jobs)]
    with contextlib.ExitStack() as stack:
        for index in range(others):
            scratch = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            process = subprocess.Popen(
                [sys.executable, "-c", _AHEAD, *last_first[index::others]],
                cwd=Path(__file__).parents[1],
                env={**os.environ, "TMPDIR": scratch},  # what an interrupted compiler leaves goes with it
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            stack.callback(_stop, process)
        yield


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and the assembler it runs: they are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write(
    folder: Path,
    chosen: Sequence[str],
    targets: Sequence[int] = TARGETS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Compiled]:
    """Cubins, PTX and the record (RECORD) into an empty folder; returns what was compiled.

    chosen: variants, of `kernels.variants.names()`. progress: called with every kernel's name before it is compiled, in the
    order of `jobs`. PTX is written where PTX_TARGET is among the targets.
    """
    compiled = []
    record: dict[str, Any] = {
        "abi_version": ABI_VERSION,
        "compiled_with": {
            "triton": triton.__version__,
            "ptxas": {f"sm_{target}": (knobs.nvidia.ptxas_blackwell if target >= 100 else knobs.nvidia.ptxas).version for target in targets},
        },
        "kernels": {},
    }  # fmt: skip
    work = jobs(chosen, targets)
    with compiling_ahead(work):
        for name, capability in work:
            progress(f"{name} sm_{capability}")
            one = choose(name, capability)
            compiled.append(one)
            file = f"sm_{capability}/{name}.cubin"
            _put(folder / file, one.cubin)
            entry = record["kernels"].setdefault(name, {})
            entry.setdefault("arguments", list(one.variant.types.items()))
            entry.setdefault("multiples_of_16", list(one.variant.multiples))
            entry.setdefault("targets", {})[f"sm_{capability}"] = _launch(one, file)
            if capability == PTX_TARGET:
                file = f"compute_{capability}/{name}.ptx"
                _put(folder / file, one.ptx.encode())
                entry["ptx"] = {"target": f"sm_{capability}", **_launch(one, file)}
    _put(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return compiled


def _launch(one: Compiled, file: str) -> dict[str, Any]:
    return {
        "file": file,
        "symbol": one.symbol,
        "threads": 32 * one.tiling.warps,
        "shared_bytes": one.resources.shared,
        "registers": one.resources.registers,
        "spilled_bytes": one.resources.spilled,
        "tile": dict(one.tiling.constants),
        "grid": [[list(pair) for pair in row] for row in one.tiling.grid],
    }


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def resource_rows(compiled: Sequence[Compiled]) -> list[dict[str, Any]]:
    """What is kept of every kernel in docs/records/kernels.jsonl."""
    return [
        {
            "kernel": one.name, "capability": one.capability, **asdict(one.resources),
            "tensor_core": tensor_core_instructions(one.cubin), "tile": dict(one.tiling.constants),
        }
        for one in compiled
    ]  # fmt: skip


def instruction_rows(compiled: Sequence[Compiled]) -> list[str]:
    """What the label kernels execute for a pixel, one line an architecture; of the sigmoid's also before."""
    lines = []
    for one in compiled:
        before = instruction_count.BEFORE.get(one.capability)
        if before and one.name in ("labels.float32.few", "softmax_labels.float32.few"):
            count = instruction_count.of_labels(machine_code(one.cubin), one.tiling.constants, 32 * one.tiling.warps)
            lines.append(
                f"{one.name} sm_{one.capability}: {count.pixel:.1f} instructions a pixel"
                f"{'' if count.word else f' ({before} before)'}, {count.candidate:.1f} more for every further candidate"
                f"{f', {count.word:.1f} more for every word' if count.word else ''} "
                f"({instruction_count.HIGH} from {instruction_count.LOW})"
            )
    return lines


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a kernel and architecture, of `resource_rows`."""
    lines = [f"{'kernel':<29} {'GPU':<7} {'registers':>9} {'spilled':>8} {'shared':>8} {'warps/SM':>8} {'tensor core':>11}  tile"]  # fmt: skip
    for row in rows:
        tile = ", ".join(f"{name.lower()} {edge}" for name, edge in row["tile"].items())
        lines.append(
            f"{row['kernel']:<29} sm_{row['capability']:<4} {row['registers']:>9} {row['spilled']:>8} "
            f"{row['shared']:>8} {row['warps']:>8} {row['tensor_core'] or '-':>11}  {tile}"
        )
    return "\n".join(lines)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a kernel for docs/bundle.md: registers a thread · KiB of shared memory a block, by architecture."""
    targets = sorted({row["capability"] for row in rows})
    lines = ["| kernel | " + " | ".join(f"sm_{target}" for target in targets) + " |", "|---" * (1 + len(targets)) + "|"]
    for name in dict.fromkeys(row["kernel"] for row in rows):
        cells = {row["capability"]: row for row in rows if row["kernel"] == name}
        written = (
            f"{cells[target]['registers']} · {round(cells[target]['shared'] / 1024)}" if target in cells else ""
            for target in targets
        )
        lines.append(f"| `{name}` | " + " | ".join(written) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="write cubins, PTX and the ABI record here")
    add("--json", type=Path, metavar="FILE", help="write the table as JSON lines")
    printed = parser.add_mutually_exclusive_group()
    printed.add_argument(
        "--table", action="store_true", help="print the table and the label kernels' instructions a pixel (the default)"
    )
    printed.add_argument("--markdown", action="store_true", help="print the table of docs/bundle.md instead")
    given = parser.parse_args()
    try:
        return _print(given.out, given.json, given.markdown)
    except OSError as error:
        print(
            f"kernels.compile: {error.filename}: {error.strerror}; name a place that can be written to", file=sys.stderr
        )
        return 50
    except KeyboardInterrupt:
        print("kernels.compile: interrupted; what lies in --out is whole only if abi.json is there", file=sys.stderr)
        return 130


def _print(out: Path | None, record: Path | None, as_markdown: bool) -> int:
    from tqdm import tqdm

    for place in (out, record and record.parent):
        if place:
            place.mkdir(parents=True, exist_ok=True)  # known to fail now rather than in a minute
    bar = functools.partial(tqdm, unit="kernel", disable=None, leave=False)
    with tempfile.TemporaryDirectory() as scratch:
        with bar(total=len(jobs(names()))) as compiling:

            def progress(name: str) -> None:
                compiling.set_description_str(name)
                compiling.update()

            compiled = write(out or Path(scratch), names(), progress=progress)
        with ThreadPoolExecutor(min(_MAX_PROCESSES, os.cpu_count() or 1)) as pool:
            read = pool.map(machine_code, [one.cubin for one in compiled])
            for _ in bar(read, total=len(compiled), desc="reading machine code"):
                pass
    rows = resource_rows(compiled)
    print(markdown(rows) if as_markdown else "\n".join([table(rows), *instruction_rows(compiled)]))
    if record:
        record.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
