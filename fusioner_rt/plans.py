"""The manifest's entries for TensorRT plans (docs/bundle.md, `engines`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .json_fields import Field

FLAVOURS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""The flavours and their names for messages."""
LISTED = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 lists. Others are tried too."""
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\+?")


@dataclass(frozen=True)
class Plan:
    """One entry of a manifest's `engines`.

    capability: "8.9", only that one, or "8.0+", that one and later. version: of the TensorRT that built it. Only that
    version loads it; a version_compatible plan also loads in later versions of the same major one.
    precision: of its products, "fp16", "bf16" or "fp32". report: the file that lists its layers, or None.
    """

    file: Path
    graph: str
    flavour: str
    version: str
    capability: str
    version_compatible: bool
    precision: str
    report: Path | None = None

    @classmethod
    def parse(cls, folder: Path, entry: Field) -> "Plan":
        """folder: the bundle's. Raises ManifestInvalid, ValueError for a capability that is none."""
        capability, report = entry["compute_capability"].text(), entry.get("report")
        if not _CAPABILITY.fullmatch(capability):
            raise ValueError(f"{capability!r} is no compute capability")
        return cls(
            folder / entry["file"].text(), entry["graph"].text(), entry["flavour"].text(), entry["version"].text(100), capability,
            entry["version_compatible"].true_or_false(), entry["precision"].text(), folder / report.text() if report else None,
        )  # fmt: skip

    @property
    def files(self) -> list[Path]:
        return [self.file, *([self.report] if self.report else [])]

    def runs_on(self, capability: Sequence[int]) -> bool:
        own = version_numbers(self.capability.removesuffix("+"))
        return tuple(capability) >= own if self.capability.endswith("+") else tuple(capability) == own

    def loads_with(self, version: str) -> bool:
        built, installed = version_numbers(self.version), version_numbers(version)
        return built == installed or (self.version_compatible and built[:1] == installed[:1] and installed > built)

    @property
    def gpus(self) -> str:
        """The compute capabilities that run it, for messages: "8.9", "8.0 and later", or for TensorRT-RTX a list."""
        listed = [name for name in LISTED if self.flavour == "tensorrt-rtx" and self.runs_on(version_numbers(name))]
        return ", ".join(listed) if listed else self.capability.replace("+", " and later")

    def to_json(self) -> dict[str, Any]:
        """The facts that `info` and `doctor` print."""
        return {
            "file": self.file.name,
            "graph": self.graph,
            "flavour": self.flavour,
            "version": self.version,
            "compute_capability": self.capability,
        }

    def __str__(self) -> str:
        return f"{self.file.name}, {FLAVOURS.get(self.flavour, self.flavour)} {self.version}, for {self.gpus}"


def version_numbers(version: str) -> tuple[int, ...]:
    """(10, 16, 1) of "10.16.1"."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
