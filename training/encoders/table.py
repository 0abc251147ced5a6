"""A fixed vocabulary as a text encoder: one given vector per name, `table:FILE.safetensors`.

  python -m training.encoders.table OUT.safetensors --names NAMES --vectors VECTORS.npy [--names ... --vectors ...]

The file holds `vectors` (N, t) and, in its metadata, `names`: JSON from each name to its row; synonyms share a row.
Names are lower case with single spaces; underscores read as spaces. A lookup is by the whole name, without a template.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusioner_rt.atomic_files import write_atomically
from fusioner_rt.command_end import run_command, say
from fusioner_rt.command_parser import CommandParser, path_argument
from fusioner_rt.errors import FusionerError, one_line
from fusioner_rt.words.templates import PLACE
from training.encoders.recognition import described, is_safetensors
from training.encoders.released import WeightsNotFound, WeightsUnfit, not_there, read_state
from training.encoders.tokenizer_file import keep_tokenizer

UNKNOWN = "[UNK]"  # never a name: names are lower case


class TableInvalid(FusionerError):
    """Names and vectors do not make a table."""

    exit_code = 79
    is_input = False


class Table(nn.Module):
    """Token id of a whole name → its vector. Any other text has id 0 and the vector 0; the runtime refuses it."""

    max_tokens = 1
    templates = (PLACE,)

    def __init__(self, names: dict[str, int], vectors: Tensor) -> None:
        """names: normalised name → row of vectors (N, t)."""
        super().__init__()
        self.width = vectors.shape[1]
        self.names = names
        unit = F.normalize(vectors.float(), dim=-1)
        self.rows = nn.Embedding.from_pretrained(torch.cat([torch.zeros(1, self.width), unit]))
        self.tokenizer_file = _tokenizer_file(names)

    @classmethod
    def from_file(cls, file: Path) -> Table:
        """Raises WeightsNotFound, WeightsUnfit."""
        from safetensors import safe_open

        build = "build a table: python -m training.encoders.table --help"
        try:
            state = read_state(file)
        except (WeightsNotFound, WeightsUnfit) as error:
            kind = not_there if isinstance(error, WeightsNotFound) else WeightsUnfit
            raise kind(error.found, f"{error.cure}, or {build}", error.subject) from None
        try:
            metadata: dict[str, str] = {}
            if is_safetensors(file):
                with safe_open(file, "pt") as opened:
                    metadata = opened.metadata() or {}
            if "names" not in metadata or "vectors" not in state:
                raise ValueError(f"its weights are {described(state)}")
            names, vectors = json.loads(metadata["names"]), state["vectors"]
            if vectors.ndim != 2 or not names or sorted(set(names.values())) != list(range(len(vectors))):
                raise ValueError(f"{len(names)} names do not fit vectors of shape {tuple(vectors.shape)}")
            if not directed(vectors.float().numpy()):
                raise ValueError("a vector is zero or not finite")
        except (ValueError, TypeError, AttributeError) as error:  # of the names, which are anyone's JSON
            raise WeightsUnfit(f"{file} is not a table of names ({one_line(error)})", build) from None
        return cls(names, vectors)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask (N, L) int64 → (N, t) float32, unit length; L is 1 where all prompts are names."""
        x = self.rows(input_ids)
        return F.normalize((x * attention_mask.to(x.dtype)[:, :, None]).sum(1), dim=-1)


def normalised(name: str) -> str:
    """The form of a name in lookups: NFKC, lower case, single spaces in place of underscores."""
    return _normaliser().normalize_str(name)


def _normaliser() -> Any:
    from tokenizers import Regex, normalizers

    spaces = normalizers.Replace(Regex(r"[\s_]+"), " ")
    form = normalizers.NFKC()  # applied twice: lower-casing can denormalise
    return normalizers.Sequence([form, normalizers.Lowercase(), form, spaces, normalizers.Strip()])


def _tokenizer_file(names: dict[str, int]) -> Path:
    """A tokenizer.json of whole names, edited as JSON: the library does not save names that share an id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.normalizer = _normaliser()
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] = {UNKNOWN: 0, **{name: row + 1 for name, row in names.items()}}
    return keep_tokenizer(json.dumps(content, ensure_ascii=False))


def read_names(file: Path) -> list[list[str]]:
    """For each row of a vectors file its name, then its synonyms. Raises TableInvalid.

    .txt  one name a line
    .json a list of names, or of objects with `name` and, if any, `synonyms` and `id` (as LVIS has them), in the ids' order
    .csv  per line an id, then names; the last is the corrected one, which was encoded (Objects365's list)
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json":
            rows = json.loads(text)
            if all(isinstance(row, dict) for row in rows):
                rows = sorted(rows, key=lambda row: row.get("id", 0))
                rows = [[row["name"], *row.get("synonyms", ())] for row in rows]
            else:
                rows = [[row] for row in rows]
        elif file.suffix == ".csv":
            lines = sorted((line for line in csv.reader(text.splitlines()) if line), key=lambda line: int(line[0]))
            rows = [line[:0:-1] for line in lines]
        else:
            rows = [[line] for line in text.splitlines() if line.strip()]
        if not all(row and all(isinstance(name, str) for name in row) for row in rows):
            raise ValueError("a row without a name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableInvalid(
            f"{file} is no list of names ({error!r}); expected .txt with a name a line, .json, or .csv", "correct it"
        ) from None
    return rows


def directed(vectors: np.ndarray) -> bool:
    """Whether every row of vectors (N, t) has a direction, i.e. is finite and not zero."""
    return bool(np.isfinite(vectors).all() and vectors.any(axis=1).all())


def merge(sources: Sequence[tuple[list[list[str]], np.ndarray]]) -> tuple[dict[str, int], np.ndarray]:
    """Merges sources of names and vectors (N, t): name → row, and the vectors of the rows in use.

    A name leads to the row it is the name of, else to a row with it as a synonym, else to a row with it as a variant: a
    part of "cabinet/shelf", or "mouse (computer equipment)" without its note, where no other row has this variant. Among
    equals the first source wins.
    """
    owners: dict[str, tuple[int, int]] = {}
    for rank in (_own, _synonyms, _variants):
        for number, (rows, _) in enumerate(sources):
            for row, name in rank(rows):
                if name := normalised(name):
                    owners.setdefault(name, (number, row))
    used = sorted(set(owners.values()))
    new_rows = {owner: index for index, owner in enumerate(used)}
    vectors = np.stack([sources[number][1][row].astype(np.float32) for number, row in used])
    return {name: new_rows[owner] for name, owner in sorted(owners.items())}, vectors


def _own(rows: list[list[str]]) -> Iterable[tuple[int, str]]:
    return ((row, names[0]) for row, names in enumerate(rows))


def _synonyms(rows: list[list[str]]) -> Iterable[tuple[int, str]]:
    return ((row, name) for row, names in enumerate(rows) for name in names[1:])


def _variants(rows: list[list[str]]) -> Iterable[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for row, names in enumerate(rows):
        for name in names:
            plain = normalised(re.sub(r"[\s_]*\([^)]*\)", "", name))
            found += [(row, part) for part in dict.fromkeys((plain, *(normalised(p) for p in plain.split("/"))))]
    rows_of = Counter(name for _, name in set(found))
    return [(row, name) for row, name in found if rows_of[name] == 1]


def build(out: Path, sources: Sequence[tuple[Path, Path]]) -> tuple[int, int]:
    """Writes the table of (names file, vectors file) pairs; returns its numbers of names and rows. Raises TableInvalid."""
    from safetensors.numpy import save

    read = []
    for names_file, vectors_file in sources:
        rows = read_names(names_file)
        try:
            vectors = np.load(vectors_file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise TableInvalid(
                f"{vectors_file} cannot be read as an array ({error}); expected .npy, (N, t)",
                "write it with numpy.save",
            ) from None
        if vectors.ndim != 2 or len(vectors) != len(rows) or not directed(vectors):
            raise TableInvalid(
                f"{vectors_file} has shape {vectors.shape}; expected finite numbers, a row for each of the {len(rows)} "
                f"names in {names_file}, none of them all zeros",
                "encode the names again",
            )
        read.append((rows, vectors))
    if len({vectors.shape[1] for _, vectors in read}) != 1:
        raise TableInvalid(
            "the vectors files differ in width; expected vectors of one text encoder", "encode them again"
        )
    names, merged = merge(read)
    content = save({"vectors": merged}, {"names": json.dumps(names, ensure_ascii=False)})
    write_atomically(out, lambda stream: stream.write(content))
    return len(names), len(merged)


def main(arguments: list[str] | None = None) -> int:
    return run_command("training.encoders.table", lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = CommandParser(
        prog="python -m training.encoders.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=path_argument, help="the table to write, .safetensors")
    parser.add_argument(
        "--names", type=path_argument, action="append", required=True, help=".txt, .json or .csv; once a source"
    )
    parser.add_argument(
        "--vectors", type=path_argument, action="append", required=True, help=".npy (N, t), beside each --names"
    )
    given = parser.parse_args(arguments)
    if len(given.names) != len(given.vectors):
        parser.error(f"{len(given.names)} --names and {len(given.vectors)} --vectors were given; give them in pairs")
    names, rows = build(given.out, list(zip(given.names, given.vectors, strict=True)))
    say(f"{given.out}: {names} names for {rows} vectors; use it as --text-encoder table:{given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
