"""Compiles the mask head's kernels without a GPU: cubins for every architecture, PTX for those to come.

  python -m kernels.compile                       # the resource table of every kernel on every architecture
  python -m kernels.compile --out DIR             # also writes cubins, PTX and the ABI record, as in a bundle

The record says all that a launcher must know (docs/bundle.md); `fusioner_rt` launches by it without Triton or torch.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.variants import TARGETS, Tiling, Variant, exists, names, variant

ABI_VERSION = 1
RECORD = "abi.json"
PTX_TARGET = 80
"""The PTX of this capability runs on every later one; Triton's PTX for 90 and above is tied to its architecture."""

_REGISTERS = 65536  # of a multiprocessor, on all of TARGETS
_SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that one block may ask for
_WARPS = {75: 32, 80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}  # resident warps of a multiprocessor
_ENOUGH_WARPS = 8


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
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": True}
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


def tensor_core_instructions(cubin: bytes) -> int:
    """How many there are in a cubin's machine code."""
    # HMMA: Ampere, Ada, consumer Blackwell; HGMMA: Hopper; UTCHMMA: data-centre Blackwell
    return len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA)\b", _cuobjdump("-sass", cubin)))


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


def write(
    folder: Path,
    features: Sequence[str],
    targets: Iterable[int] = TARGETS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Compiled]:
    """Cubins, PTX and the record (RECORD) into an empty folder; returns what was compiled.

    features: dtypes features may have, of `kernels.variants.FEATURE_TYPES`. progress: called with every kernel's name.
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
    for name in names(features):
        entry: dict[str, Any] = {}
        for capability in targets:
            if not exists(name, capability):
                continue
            progress(f"{name} sm_{capability}")
            one = choose(name, capability)
            compiled.append(one)
            file = f"sm_{capability}/{name}.cubin"
            _put(folder / file, one.cubin)
            entry.setdefault("arguments", list(one.variant.types.items()))
            entry.setdefault("multiples_of_16", list(one.variant.multiples))
            entry.setdefault("targets", {})[f"sm_{capability}"] = _launch(one, file)
            if capability == PTX_TARGET:
                file = f"compute_{capability}/{name}.ptx"
                _put(folder / file, one.ptx.encode())
                entry["ptx"] = {"target": f"sm_{capability}", **_launch(one, file)}
        record["kernels"][name] = entry
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


def table(compiled: Sequence[Compiled]) -> str:
    """One line a kernel and architecture."""
    lines = [f"{'kernel':<22} {'GPU':<7} {'registers':>9} {'spilled':>8} {'shared':>8} {'warps/SM':>8} {'tensor core':>11}  tile"]  # fmt: skip
    for one in compiled:
        r = one.resources
        tile = ", ".join(f"{name.lower()} {edge}" for name, edge in one.tiling.constants.items())
        lines.append(
            f"{one.name:<22} sm_{one.capability:<4} {r.registers:>9} {r.spilled:>8} {r.shared:>8} {r.warps:>8} "
            f"{tensor_core_instructions(one.cubin) or '-':>11}  {tile}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write cubins, PTX and the ABI record here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON lines")
    given = parser.parse_args()
    from tqdm import tqdm

    with tempfile.TemporaryDirectory() as scratch:
        jobs = [(name, target) for name in names() for target in TARGETS if exists(name, target)]
        with tqdm(total=len(jobs), unit="kernel", disable=None, leave=False) as bar:

            def progress(name: str) -> None:
                bar.set_description_str(name)
                bar.update()

            compiled = write(given.out or Path(scratch), list(dict.fromkeys(["float16", "bfloat16", "float32"])), progress=progress)  # fmt: skip
    print(table(compiled))
    if given.json:
        rows = [{"kernel": c.name, "capability": c.capability, **asdict(c.resources), "tensor_core": tensor_core_instructions(c.cubin), "tile": dict(c.tiling.constants)} for c in compiled]  # fmt: skip
        given.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
