"""Writes a bundle as models for NVIDIA Triton Inference Server, into its model repository (docs/triton.md)."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # as a script, from anywhere: this folder gives way to the repository's root
    sys.path[0] = str(ROOT)

from export import triton_configs as configs  # noqa: E402
from export.triton_configs import Message, ServerOptions, pbtxt  # noqa: E402
from fusioner_rt.argument_checks import shown  # noqa: E402
from fusioner_rt.command_end import run_command, say, tell  # noqa: E402
from fusioner_rt.command_parser import CommandParser, count, path_argument, up_to  # noqa: E402
from fusioner_rt.errors import UsageError  # noqa: E402

if TYPE_CHECKING:
    from fusioner_rt.bundle import Bundle
    from fusioner_rt.manifest import GraphEntry
    from fusioner_rt.plans import Plan

EXAMPLES = """
examples:
  python export/triton_repository.py models/demo/bundle triton
      triton/demo, a model that Triton runs by its Python backend; triton/demo/README.md has the docker run line
  python export/triton_repository.py engines/mine triton --name mine --instances 4 --stream
      four processes with a session each, and mine_stream, whose requests have many pictures and a response for each
  python export/triton_repository.py engines/mine triton --in-place --max-batch 1
      the bundle is named by its path, not copied; pictures that wait are not run together
  python export/triton_repository.py engines/mine triton --engines
      also mine_image_fusion, the TensorRT plan (or ONNX graph) for Triton's own backend, in the ensemble mine_engines

Each model is a folder that is written whole or not at all. A model of this command that lies there is replaced; whatever else the
repository holds stays.
"""
FILES = "files.txt"
"""The names of a model's own files, a line each."""
NUMPY = "numpy==1.26.4"
"""Python backends before 24.12 read texts wrongly beside numpy 2."""

MODEL = """\
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from {module} import {name} as TritonPythonModel  # noqa: E402, F401
"""
README = """\
# {name}, a model of fusioner-rt for NVIDIA Triton Inference Server

The server needs Python 3.11 or later (its images of 24.11 and later have 3.12) and what `requirements.txt` lists. In the folder
that holds this model's:

```sh
docker run --rm {gpus}--shm-size 1g -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002 \\
    -v "$PWD:/models" {bundle}nvcr.io/nvidia/tritonserver:25.06-py3 \\
    sh -c "pip install -r /models/{name}/requirements.txt && exec tritonserver --model-repository /models{cache}"
```

The ports are open to this machine alone, as the server has no token: a proxy in front of it may let others in.

A client, `pip install 'tritonclient[http]'`:

```python
import numpy as np
from tritonclient import http

client = http.InferenceServerClient("127.0.0.1:8000")
picture = http.InferInput("PICTURE", [1, 1], "BYTES")
picture.set_data_from_numpy(np.array([[open("cat.jpg", "rb").read()]], object))
words = http.InferInput("WORDS", [1, 2], "BYTES")
words.set_data_from_numpy(np.array([["cat", "sofa"]], object))
answer = client.infer("{name}", [picture, words])
labels = answer.as_numpy("LABELS")[0]  # (H, W) uint16, 0 = background, n = word n
```

`config.pbtxt` may be edited: instances, queue, delays. Writing the model again replaces it.
docs/triton.md of fusioner-rt tells about each input and number.
"""


@dataclass(frozen=True)
class Options:
    """bundle: its folder or name. picture, words: of the warm-up. in_place: name the bundle by its path, do not copy it."""

    bundle: str
    out: Path
    server: ServerOptions
    picture: Path = ROOT / "docs/pictures/cat.jpg"
    words: str = "cat, sofa"
    in_place: bool = False


@dataclass
class _Folder:
    """A model to be written: its configuration, and what fills the rest of its folder."""

    config: Message
    fill: list[Callable[[Path], None]] = field(default_factory=list)


def write(options: Options) -> list[Path]:
    """Write the models. Returns their folders, the whole way's first.

    Raises the bundle's errors, errors of the warm-up's picture and words, UsageError and OutputUnwritable.
    """
    from fusioner_rt.atomic_files import left_where_filled, unwritable, writable_folder
    from fusioner_rt.bundle import Bundle, find_bundle, read_manifest
    from fusioner_rt.whole_folders import replace_folder, unfinished_folder

    bundle = Bundle.open(find_bundle(options.bundle))
    manifest = read_manifest(bundle.folder)
    _check_warmup(options)
    models = _models(options, bundle, manifest)
    places = {name: Path(os.path.realpath(options.out)) / name for name in models}
    for place in places.values():
        _check_place(place)
    with left_where_filled(options.out):
        writable_folder(options.out)
        for name, model in models.items():
            try:
                with unfinished_folder(places[name], tell) as unfinished:
                    (unfinished / "config.pbtxt").write_text(pbtxt(model.config))
                    (unfinished / "1").mkdir()
                    for fill in model.fill:
                        fill(unfinished)
                    files = sorted(
                        file.relative_to(unfinished).as_posix() for file in unfinished.rglob("*") if file.is_file()
                    )
                    (unfinished / FILES).write_text("".join(f"{file}\n" for file in [*files, FILES]))
                    unfinished.chmod(0o755)
                    _check_place(places[name])
                    replace_folder(unfinished, places[name])
            except OSError as error:
                raise unwritable(places[name], error) from None
    return [options.out / name for name in models]


def _models(options: Options, bundle: Bundle, manifest: Message) -> dict[str, _Folder]:
    """By name, each after those that it asks."""
    server, name = options.server, options.server.name
    copied = [] if options.in_place else [lambda folder: _copy_bundle(bundle, folder / "bundle")]
    made = {
        name: _Folder(
            configs.whole(server, [1]),
            [
                _python("triton", "TritonPythonModel"),
                *copied,
                lambda folder: _write_warmup(folder, options),
                lambda folder: _write_texts(folder, options, bundle),
            ],
        )
    }
    if server.stream:
        made[f"{name}_stream"] = _Folder(
            configs.stream(server, f"{name}_stream"), [_python("triton", "TritonStreamModel")]
        )
    if server.engines:
        plan, profiles = configs.plan_of(bundle, manifest) if server.gpu else (None, [])  # a plan runs on no CPU
        graph = bundle.graphs["image_fusion"]
        names = {step: f"{name}_{step}" for step in ("prepare", "image_fusion", "masks")} | {
            "ensemble": f"{name}_engines"
        }
        engine = configs.engine(server, names["image_fusion"], graph, plan, profiles)
        batch = engine["max_batch_size"]
        made |= {
            names["prepare"]: _Folder(
                configs.prepare(server, names["prepare"], bundle), [_python("triton_steps", "Prepare"), *copied]
            ),
            names["image_fusion"]: _Folder(engine, [lambda folder: _copy_engine(folder, graph, plan)]),
            names["masks"]: _Folder(
                configs.masks(server, names["masks"], bundle), [_python("triton_steps", "Masks"), *copied]
            ),
            names["ensemble"]: _Folder(configs.ensemble(server, names, batch), [_keep_version]),
        }
    return made


def _python(module: str, name: str) -> Callable[[Path], None]:
    """A model of the Python backend: a file that names its class, and the runtime beside it."""

    def fill(folder: Path) -> None:
        (folder / "1/model.py").write_text(MODEL.format(module=f"fusioner_rt.serve.{module}", name=name))
        ignored = shutil.ignore_patterns("__pycache__", "page")  # the service's page is not served there
        shutil.copytree(ROOT / "fusioner_rt", folder / "runtime/fusioner_rt", ignore=ignored)
        shutil.copyfile(ROOT / "LICENSE", folder / "runtime/LICENSE")

    return fill


def _copy_bundle(bundle: Bundle, to: Path) -> None:
    from fusioner_rt.manifest import MANIFEST

    for file in [bundle.folder / MANIFEST, *bundle.files]:
        place = to / file.relative_to(bundle.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def _copy_engine(folder: Path, graph: GraphEntry, plan: Plan | None) -> None:
    if plan is not None:
        shutil.copyfile(plan.file, folder / "1/model.plan")
        return
    shutil.copyfile(graph.file, folder / "1/model.onnx")
    if graph.weights:  # the graph names it, and looks beside itself
        shutil.copyfile(graph.weights, folder / "1" / graph.weights.name)


def _keep_version(folder: Path) -> None:
    (folder / "1/empty.txt").write_text(
        "The server wants a version's folder, and object stores keep none that is empty.\n"
    )


def _write_warmup(folder: Path, options: Options) -> None:
    (folder / "warmup").mkdir()
    for name, content in (
        (configs.PICTURE_FILE, options.picture.read_bytes()),
        (configs.WORDS_FILE, options.words.encode()),
    ):
        (folder / "warmup" / name).write_bytes(configs.warmup_bytes(content))


def _write_texts(folder: Path, options: Options, bundle: Bundle) -> None:
    server = options.server
    (folder / "README.md").write_text(
        README.format(
            name=server.name,
            gpus="--gpus device=0 " if server.gpu else "",
            bundle=f"-v {shlex.quote(f'{server.bundle}:{server.bundle}:ro')} " if options.in_place else "",
            cache=" --cache-config local,size=268435456" if server.cache else "",
        )
    )
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements(bundle, server.gpu)))


def requirements(bundle: Bundle, gpu: bool) -> list[str]:
    """What a server's Python needs beside the runtime, at the versions that are known to work."""
    text = (ROOT / "constraints.txt").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", text, flags=re.MULTILINE))
    flavours = {plan.flavour: plan.version for plan in bundle.plans}
    wanted = ["pillow", "tokenizers", "onnxruntime"]
    if gpu:
        wanted += ["cuda-bindings", "cuda-core"]
        if not flavours:
            wanted.remove("onnxruntime")
    lines = [NUMPY, *(f"{name}=={pinned[name]}" for name in wanted)]
    if gpu and not flavours:
        lines.append(f"onnxruntime-gpu[cuda,cudnn]=={pinned['onnxruntime-gpu']}")
    return lines + [f"{flavour}=={version}" for flavour, version in flavours.items() if gpu]


def _check_warmup(options: Options) -> None:
    """Raises errors of pictures and words."""
    from fusioner_rt.decode_picture import decode
    from fusioner_rt.words.parse import parse_words

    decode(options.picture, max_pixels=options.server.max_pixels)
    parse_words(options.words)


def _check_place(place: Path) -> None:
    """Check that a model may be put there: in place of another of ours, and of nothing else. Raises OutputUnwritable, UsageError."""
    from fusioner_rt.atomic_files import check_replaceable
    from fusioner_rt.replaced_bundles import check_files

    check_replaceable(place)
    if (place / FILES).is_file():
        compiled = {file.relative_to(place).as_posix() for file in place.rglob("__pycache__/*.pyc")}
        check_files(
            place, {*(place / FILES).read_text(errors="replace").splitlines(), *compiled}, "this command did not write"
        )
    elif place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError("holds something other than a model of this command", "choose another --name or folder", place)


def _parser() -> argparse.ArgumentParser:
    own = ServerOptions("")
    parser = CommandParser(
        prog="triton_repository.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="the bundle's folder or name, such as engines/demo")
    add("out", type=path_argument, metavar="OUT", help="the model repository's folder; it may hold other models")
    add("--name", type=_name, help="of the model (the bundle's)")
    add(
        "--kind",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="where instances run: auto is gpu where the bundle has TensorRT plans, else cpu (auto)",
    )
    add(
        "--instances",
        type=count,
        default=own.instances,
        metavar="N",
        help=f"processes with a session each ({own.instances})",
    )
    add(
        "--max-batch",
        type=count,
        metavar="N",
        help="most pictures of a request, and of requests that run together (the bundle's)",
    )
    add(
        "--max-wait",
        type=_milliseconds,
        metavar="MS",
        help="longest wait for others to share a call (3 on a GPU, 0 on CPUs)",
    )
    add("--queue", type=count, default=own.queue, metavar="N", help=f"most requests that wait ({own.queue})")
    add(
        "--deadline",
        type=count,
        default=round(own.deadline),
        metavar="S",
        help=f"seconds that one may wait ({own.deadline:g})",
    )
    add(
        "--max-pixels",
        type=up_to(1 << 27),
        default=own.max_pixels,
        metavar="N",
        help=f"largest picture ({own.max_pixels})",
    )
    add(
        "--max-words", type=count, default=own.max_words, metavar="N", help=f"most words of a request ({own.max_words})"
    )
    add(
        "--cache",
        action="store_true",
        help="use the server's response cache. It keeps errors as answers without outputs, and looks at inputs alone: read docs/triton.md",
    )
    add(
        "--pixels",
        action="store_true",
        help="an input PIXELS of raw pixels, too; without --cache, to which 2x3 pixels are 3x2",
    )
    add("--stream", action="store_true", help="also NAME_stream: a request has many pictures, and each its response")
    add(
        "--engines",
        action="store_true",
        help="also image_fusion by itself, for Triton's TensorRT or ONNX Runtime, and an ensemble",
    )
    add("--in-place", action="store_true", help="do not copy the bundle: the server finds it by the path it has now")
    add("--picture", type=path_argument, metavar="FILE", help="photograph of the warm-up (docs/pictures/cat.jpg)")
    add("--words", default=Options.words, help=f"words of the warm-up ({Options.words!r})")
    return parser


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Raises the errors of finding a bundle."""
    from fusioner_rt.bundle import Bundle, find_bundle, read_manifest

    given = _parser().parse_args(arguments)
    folder = find_bundle(given.bundle)
    bundle = Bundle.of(folder, read_manifest(folder))
    if given.cache and given.pixels:
        raise UsageError(
            "the server's cache looks at bytes and not at shapes: 2x3 pixels are 3x2 to it",
            "leave one out",
            "--cache --pixels",
        )
    if (given.max_batch or 1) > bundle.batch.max:
        raise UsageError(
            f"the bundle runs at most {bundle.batch.max} pictures together",
            "give no more",
            f"--max-batch {given.max_batch}",
        )
    gpu = given.kind == "gpu" or (given.kind == "auto" and bool(bundle.plans))
    server = ServerOptions(
        name=given.name or re.sub(r"[^\w.-]", "_", bundle.name, flags=re.ASCII),
        gpu=gpu,
        instances=given.instances,
        max_batch=given.max_batch or bundle.batch.max,
        max_wait=given.max_wait if given.max_wait is not None else 3.0 if gpu else 0.0,
        cache=given.cache,
        pixels=given.pixels,
        queue=given.queue,
        deadline=given.deadline,
        max_pixels=given.max_pixels,
        max_words=given.max_words,
        stream=given.stream,
        engines=given.engines,
        bundle=str(folder.resolve()) if given.in_place else "bundle",
    )
    picture = given.picture or Options.picture
    return Options(given.bundle, given.out, server, picture, given.words, given.in_place)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is no model's name: letters, digits, and _ . - after the first"
        )
    return text


def _milliseconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number of milliseconds, such as 3 or 0.5")
    return float(text)


def main(arguments: Sequence[str] | None = None) -> int:
    def run() -> int:
        options = parse(arguments)
        for folder in write(options):
            say(f"{folder}")
        return 0

    return run_command("triton_repository", run, "models that were being written are as they were")


if __name__ == "__main__":
    sys.exit(main())
