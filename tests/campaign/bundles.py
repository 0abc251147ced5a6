"""Bundles: files tampered with, manifests changed, hostile graphs, tokenizers and answers; an error, or the untouched results.

What was changed under its digest must be refused; a file beside, a link to the same content or other spaces in the manifest may also
change nothing. With the digests written again the bundle is another author's, and may answer otherwise: it must only not crash,
hang, or answer with what is no probability.
"""

import filecmp
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fusioner_rt import Session
from fusioner_rt.bundle import write_manifest
from fusioner_rt.errors import FusionerError

from .cases import Bench, Case
from .reference import WORDS, open_and_answer, pictures, quick

MANIFEST = "manifest.json"
SECRET = "outside.bin"  # beside the bundle, where a hostile one points


def case(number: int, random: Random, bench: Bench) -> Case:
    pristine = quick(bench)
    right = bench.once("answers", lambda: open_and_answer(pristine))
    if not isinstance(right, str):
        raise right
    bundle = bench.folder / "bundle"
    shutil.copytree(pristine, bundle, copy_function=os.link)  # every change below replaces the file it changes
    make = random.choices((_tampered, _edited, _rewritten, _hostile), (4, 3, 3, 3))[0]
    what = make(bundle, random)
    if make in (_rewritten, _hostile):
        return Case(lambda: _sane(bundle), what)
    altered = _altered(bundle, pristine)
    return Case(lambda: _judged(bundle, None if altered else right), f"{what}{' (altered)' if altered else ''}")


def _altered(bundle: Path, pristine: Path) -> bool:
    """Whether the manifest says something else, or a file that it lists is not what it was."""
    listed = json.loads((pristine / MANIFEST).read_text())
    try:
        if (bundle / MANIFEST).is_file() and json.loads((bundle / MANIFEST).read_text()) != listed:
            return True
    except (ValueError, RecursionError):
        return True
    names = [MANIFEST, *listed["files"]]
    return not all((bundle / name).is_file() for name in names) or not all(
        filecmp.cmp(bundle / name, pristine / name, shallow=False) for name in names[1:]
    )


def _judged(bundle: Path, right: str | None) -> str | None:
    """right: results that are allowed too, or None where the bundle must be refused."""
    answer = open_and_answer(bundle)
    if isinstance(answer, FusionerError) or answer == right:
        return None
    return "it is altered, and it opens" if right is None else "its results are not those of the untouched bundle"


def _sane(bundle: Path) -> str | None:
    try:
        with Session(bundle, cache=False, threads=1, backend="onnxruntime-cpu") as session:
            result = session.segment(pictures()[0], WORDS[:3], probabilities=True)
    except FusionerError:
        return None
    assert result.probabilities is not None
    for array in (result.confidence, result.probabilities):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            return "it answers with what is no probability"
    return None


# Files: under the digests of the manifest.


def _tampered(bundle: Path, random: Random) -> str:
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    graphs = [path for path in files if path.parent == bundle and path.name != MANIFEST]
    file = random.choices((random.choice(graphs), bundle / MANIFEST, random.choice(files)), (5, 3, 2))[0]
    change = random.choice(
        (_flipped, _flipped, _overwritten, _cut, _longer, _emptied, _swapped, _removed, _linked, _endless, _piped, _a_folder, _beside)
    )  # fmt: skip
    return f"{change.__name__[1:]} {file.relative_to(bundle)}{change(bundle, file, random)}"


def _put(file: Path, content: bytes) -> None:
    """Replace a file, which may be another's too."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def _flipped(bundle: Path, file: Path, random: Random) -> str:
    content = bytearray(file.read_bytes())
    place, bit = random.randrange(len(content)), random.randrange(8)
    content[place] ^= 1 << bit
    _put(file, bytes(content))
    return f": bit {bit} of byte {place}"


def _overwritten(bundle: Path, file: Path, random: Random) -> str:
    content = bytearray(file.read_bytes())
    start, length = random.randrange(len(content)), random.randint(1, 200)
    content[start : start + length] = random.randbytes(len(content[start : start + length]))
    _put(file, bytes(content))
    return f": {length} bytes from {start}"


def _cut(bundle: Path, file: Path, random: Random) -> str:
    content = file.read_bytes()
    length = random.randrange(len(content))
    _put(file, content[:length])
    return f" to {length} bytes"


def _longer(bundle: Path, file: Path, random: Random) -> str:
    _put(file, file.read_bytes() + random.randbytes(random.randint(1, 1000)))
    return ""


def _emptied(bundle: Path, file: Path, random: Random) -> str:
    _put(file, b"")
    return ""


def _swapped(bundle: Path, file: Path, random: Random) -> str:
    other = random.choice(sorted(path for path in bundle.rglob("*") if path.is_file()))
    first, second = file.read_bytes(), other.read_bytes()
    _put(file, second)
    _put(other, first)
    return f" with {other.relative_to(bundle)}"


def _removed(bundle: Path, file: Path, random: Random) -> str:
    file.unlink()
    return ""


def _linked(bundle: Path, file: Path, random: Random) -> str:
    """To a copy outside, which is allowed, to another's content, to itself, or to nothing."""
    target = bundle.parent / SECRET
    kind = random.choice(("the same content", "another", "itself", "nothing"))
    if kind in ("the same content", "another"):
        shutil.copyfile(file, target)
        if kind == "another":
            _put(target, bytes(target.stat().st_size))
    file.unlink()
    file.symlink_to(file if kind == "itself" else target)
    return f" to {kind}"


def _endless(bundle: Path, file: Path, random: Random) -> str:
    device = random.choice(("/dev/zero", "/dev/random", "/dev/full", "/dev/null"))
    file.unlink()
    file.symlink_to(device)
    return f": {device}"


def _piped(bundle: Path, file: Path, random: Random) -> str:
    file.unlink()
    os.mkfifo(file)
    return ""


def _a_folder(bundle: Path, file: Path, random: Random) -> str:
    file.unlink()
    file.mkdir()
    return ""


def _beside(bundle: Path, file: Path, random: Random) -> str:
    name = random.choice(("weights.bin.bak", "manifest.json~", ".hidden", "text.onnx.data", "a b\n.bin"))
    (bundle / name).write_bytes(random.randbytes(100))
    return f": {name!r}"


# The manifest.

_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, -5, 10**9, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "../x", "/etc/passwd", "manifest.json", "{category}", "{", "é\u202e", "\ud800", "x" * 10_000_000, [], {},
    [[]], [None], ["{category}"] * 3000, {"": 0}, [1, 2, 3],
)  # fmt: skip


def _mutated(manifest: Any, random: Random) -> str:
    """Change one place of a JSON document. Returns what was done."""
    place, trail = manifest, []
    while True:
        key = random.choice(list(place)) if isinstance(place, dict) else random.randrange(len(place))
        trail.append(str(key))
        if not (isinstance(place[key], (dict, list)) and place[key] and random.random() < 0.85):
            break
        place = place[key]
    change, name = random.random(), ".".join(trail)
    if change < 0.2:
        del place[key]
        return f"{name} removed"
    if change < 0.3 and isinstance(place, dict):
        place[f"{key}_"] = place.pop(key)
        return f"{name} renamed"
    if change < 0.4 and isinstance(place, dict):
        other = random.choice(list(place))
        place[key], place[other] = place[other], place[key]
        return f"{name} and {other} exchanged"
    if change < 0.5 and isinstance(place[key], (int, float)) and not isinstance(place[key], bool):
        place[key] = random.choice((place[key] + 1, place[key] - 1, -place[key], place[key] * 1.01, place[key] * 1000))
    elif change < 0.55:
        place[key] = json.loads("[" * 900 + "]" * 900)
        return f"{name} = lists in lists"
    else:
        place[key] = random.choice(_VALUES)
    return f"{name} = {str(place[key])[:40]!r}"


def _edited(bundle: Path, random: Random) -> str:
    """The manifest with another value, its digest left as it was; or text that is hardly JSON."""
    text = (bundle / MANIFEST).read_text()
    if random.random() < 0.15:
        broken = random.choice(
            ("[" * 100_000, '{"a":' * 50_000, text[: random.randrange(len(text))], text + text, text.replace(":", ",", 1), "\ufeff" + text,
             "null", '"x"', "1e999", f"{text[:-2]}, {text[2:]}", text.replace('"sha256"', '"sha265"'))
        )  # fmt: skip
        _put(bundle / MANIFEST, broken.encode())
        return f"manifest as text that begins with {broken[:20]!r}, {len(broken)} characters"
    manifest = json.loads(text)
    what = _mutated(manifest, random)
    _put(bundle / MANIFEST, json.dumps(manifest, indent=2).encode())
    return f"manifest edited, {what}"


def _rewritten(bundle: Path, random: Random) -> str:
    """The manifest of an author who writes what no bundle should say, under right digests."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    what = ", ".join(_mutated(manifest, random) for _ in range(random.choice((1, 1, 2, 5))))
    _sign(bundle, manifest)
    return f"manifest rewritten, {what}"


def _sign(bundle: Path, manifest: Any) -> None:
    """Write the manifest with every digest right; where that is no text, without."""
    try:
        write_manifest(bundle, manifest)
    except (UnicodeEncodeError, TypeError, ValueError, FusionerError):
        _put(bundle / MANIFEST, json.dumps(manifest).encode())


# Files that a hostile author made, under right digests.


def _hostile(bundle: Path, random: Random) -> str:
    what = random.choice((_hostile_graph, _hostile_graph, _hostile_tokenizer, _hostile_answer, _hostile_kernels))(
        bundle, random
    )
    _sign(bundle, json.loads((bundle / MANIFEST).read_text()))
    return f"hostile {what}"


def _hostile_graph(bundle: Path, random: Random) -> str:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    file = random.choice(sorted(bundle.glob("*.onnx")))
    model = onnx.load(file, load_external_data=False)
    graph, stored = (
        model.graph,
        [weight for weight in model.graph.initializer if weight.data_location != TensorProto.EXTERNAL],
    )
    first = graph.node[0]

    def external() -> str:
        (bundle.parent / SECRET).write_bytes(bytes(1 << 20))
        (bundle / "unlisted").mkdir()
        place = random.choice(
            ("/etc/passwd", f"../{SECRET}", "/dev/zero", "unlisted/../weights.bin", "manifest.json", "", "x\0y")
        )
        weight = random.choice(graph.initializer)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        del weight.external_data[:]
        offset = random.choice(("0", "-1", "4096", str(2**62)))
        for key, value in (
            ("location", place),
            ("offset", offset),
            ("length", random.choice(("4", "4096", str(2**62)))),
        ):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
        return f"external data in {place!r} from {offset}"

    def values() -> str:
        weight = random.choice(stored)
        array = numpy_helper.to_array(weight).copy()
        if array.dtype.kind not in "fiu" or not array.size:
            return "nothing"
        value = (
            random.choice((np.nan, np.inf, -np.inf, 65504.0, -1.0, 0.0))
            if array.dtype.kind == "f"
            else random.choice((0, 1, 127))
        )
        array.reshape(-1)[:: random.choice((1, 7, 1000))] = value
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
        return f"weights of {value}"

    def constant() -> str:
        shape = random.choice(([2**42], [2**31, 2**31], [-1, 4], [0], [2**62, 4]))
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "huge_shape"))
        graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"]))
        for node in graph.node[1:]:
            if node.op_type in ("Add", "Mul") and len(node.input) == 2:
                node.input[1] = "huge"
                break
        return f"a constant of shape {shape}"

    def names() -> str:
        listed = random.choice((graph.input, graph.output))
        listed[random.randrange(len(listed))].name = random.choice(("x", "", listed[-1].name, "é" * 1000))
        return "other names of inputs or outputs"

    def more() -> str:
        graph.input.append(helper.make_tensor_value_info("another", TensorProto.FLOAT, [1]))
        return "another input"

    def types() -> str:
        listed = random.choice((graph.input, graph.output))
        listed[0].type.tensor_type.elem_type = random.choice(
            (TensorProto.DOUBLE, TensorProto.STRING, TensorProto.INT8, 99)
        )
        return "another type"

    def fewer() -> str:
        del graph.node[random.randrange(len(graph.node))]
        return "a node less"

    def operator() -> str:
        first.op_type, first.domain = random.choice((("PyOp", "x.y"), ("Sin", ""), ("Loop", ""), ("If", ""), ("", "")))
        return f"the operator {first.op_type!r}"

    def circle() -> str:
        first.input[0] = graph.node[-1].output[0]
        return "a circle"

    def version() -> str:
        model.opset_import[0].version = random.choice((0, 1, -1, 99, 2**62))
        return f"opset {model.opset_import[0].version}"

    def nothing() -> str:
        del graph.node[:]
        return "no nodes"

    made = random.choice(
        (external, external, values, values, constant, names, more, types, fewer, operator, circle, version, nothing)
    )()
    _put(file, model.SerializeToString())
    return f"{file.name}: {made}"


def _hostile_tokenizer(bundle: Path, random: Random) -> str:
    file = bundle / "tokenizer.json"
    content = json.loads(file.read_text())

    def vocabulary() -> None:
        words = content["model"].get("vocab")
        if isinstance(words, dict):
            content["model"]["vocab"] = {word: random.choice((-1, 2**31, 2**40, 10**6, 0)) for word in words}

    def huge_ids() -> None:
        words = content["model"].get("vocab")
        if isinstance(words, dict):
            content["model"]["vocab"] = {word: index + 10**6 for word, index in words.items()}

    def emptied() -> None:
        content["model"]["vocab"] = {}

    def expression() -> None:
        content["normalizer"] = {
            "type": "Replace",
            "pattern": {"Regex": "(a+)+$|(a|aa)+$"},
            "content": "aaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
        }

    def longer() -> None:
        content["normalizer"] = {
            "type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}] * 6,
        }  # fmt: skip

    def mutated() -> None:
        _mutated(content, random)

    if random.random() < 0.2:
        _put(
            file,
            random.choice((b"", b"{}", b"null", random.randbytes(1000), b"[" * 100_000, file.read_bytes()[:-1000])),
        )
        return "tokenizer: bytes"
    change: Callable[[], None] = random.choice((vocabulary, huge_ids, emptied, expression, longer, mutated, mutated))
    change()
    _put(file, json.dumps(content).encode())
    return f"tokenizer: {change.__name__}"


def _hostile_answer(bundle: Path, random: Random) -> str:
    file = next(bundle.glob("known_answer*"), bundle / "known_answer.npz")
    with np.load(file) as stored:
        arrays = dict(stored)
    name = random.choice(list(arrays))
    change = random.choice(("objects", "shape", "nan", "cut", "bomb", "bytes", "less"))
    written = io.BytesIO()
    if change == "bomb":
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}.npy", bytes(200 << 20))
    elif change == "bytes":
        written.write(random.randbytes(2000))
    else:
        if change == "objects":
            arrays[name] = np.array([{"a": 1}, os.system], dtype=object)
        elif change == "shape":
            arrays[name] = arrays[name].reshape(-1)
        elif change == "nan":
            arrays[name] = np.full(arrays[name].shape, np.nan, np.float32)
        elif change == "less":
            del arrays[name]
        np.savez(written, **arrays)
    content = written.getvalue()
    _put(file, content[: len(content) // 2] if change == "cut" else content)
    return f"known answer: {name}, {change}"


def _hostile_kernels(bundle: Path, random: Random) -> str:
    files = sorted(path for path in (bundle / "kernels").rglob("*") if path.is_file())
    if not files:
        return "kernels: none there"
    file = random.choice((random.choice(files), bundle / "kernels/abi.json"))
    _put(file, random.choice((b"", random.randbytes(5000), b"{}", b"[" * 50_000)))
    return f"kernels: {file.relative_to(bundle)}"
