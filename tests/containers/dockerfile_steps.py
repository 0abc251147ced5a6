"""A Dockerfile's steps, run without Docker: each stage in a root folder of its own, by Linux namespaces. It needs root.

The base image, which would come from a registry, is stood in for: /usr is this machine's, read-only, its Python lies where
the image has it, with pip alone, and /etc, /tmp, /root and all the rest begin empty. Every other step is taken as it is written; one that this does
not know is an error.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
_NO_STEPS = {"EXPOSE", "VOLUME", "LABEL"}
"""Kept in `Image.facts`: they change no file."""


@dataclass
class Image:
    """What a stage has made. root: its folder. facts: the last arguments of instructions that say how it is run."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    folder: str = "/"
    user: str = "0:0"
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        return [*json.loads(self.facts["ENTRYPOINT"]), *json.loads(self.facts["CMD"])]

    @property
    def health_command(self) -> list[str]:
        return json.loads(self.facts["HEALTHCHECK"].partition("CMD ")[2])


def build(dockerfile: Path, work: Path) -> Image:
    """Run a Dockerfile over its folder. work: holds the stages."""
    images: dict[str, Image] = {}
    image = None
    context = work / "context"
    copy_context(dockerfile.parent, context)
    for name, arguments in instructions(dockerfile.read_text()):
        if name == "FROM":
            base, _, alias = arguments.partition(" AS ")
            assert re.fullmatch(r"python:3\.11-slim-\w+", base), f"only Python's image is stood in for, not {base}"
            image = images[alias] = Image(work / (alias or "last"))
            _begin(image.root)
            continue
        assert image is not None
        if name == "RUN":
            _run(image, arguments)
        elif name == "COPY":
            _copy(image, arguments, context, images)
        elif name == "ENV":
            given = Template(arguments).substitute(image.environment)
            image.environment |= dict(word.split("=", 1) for word in shlex.split(given))
        elif name == "WORKDIR":
            image.folder = arguments
            (image.root / arguments[1:]).mkdir(parents=True, exist_ok=True)
        elif name == "USER":
            image.user = arguments
        else:
            assert name in {*_NO_STEPS, "HEALTHCHECK", "ENTRYPOINT", "CMD"}, f"{name} is not known here"
            image.facts[name] = arguments
    assert image is not None
    return image


def instructions(text: str) -> list[tuple[str, str]]:
    """Names and arguments, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def copy_context(source: Path, context: Path) -> None:
    """What git has of a folder, but for what .dockerignore leaves out."""
    rules = [line for line in (source / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source, check=True, capture_output=True, text=True,
        env={**os.environ, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if is_sent(name, rules) and (source / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, context / name)


def is_sent(name: str, rules: list[str]) -> bool:
    """Whether .dockerignore lets a file into the context: the last rule that matches it, or a folder of it, decides."""
    names = [name, *map(str, Path(name).parents)][:-1]
    sent = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        anywhere = pattern.removeprefix("**/")
        if any(
            one.count("/") == pattern.count("/") and fnmatch.fnmatchcase(one, pattern)
            if anywhere == pattern
            else fnmatch.fnmatchcase(Path(one).name, anywhere)
            for one in names
        ):
            sent = rule.startswith("!")
    return sent


class Container:
    """An image that runs: its command is process 1, its root read-only, its network its own."""

    def __init__(self, image: Image, log: Path, writable: list[str]) -> None:
        """log: what it says. writable: folders, which a read-only root does not cover."""
        self.image = image
        with open(log, "wb") as stream:
            self._outer = subprocess.Popen(
                _sandboxed(image, image.command, own=True, writable=writable),
                stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env={},
            )  # fmt: skip
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.01)
        self.pid = int(found[0])

    def execute(self, command: list[str]) -> int:
        """Run a command beside it, as its user, as `docker exec` does. Returns its exit code."""
        user, group = self.image.user.split(":")
        entered = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--root", "--wd=/"]
        environment = [f"{name}={value}" for name, value in self.image.environment.items()]
        return subprocess.run(
            [*entered, "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "env", "-i", *environment, *command],
            capture_output=True,
        ).returncode  # fmt: skip

    def ask(self, *command: str) -> bytes:
        """What a command of this machine says in the container's network. Raises CalledProcessError."""
        return subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", *command], check=True, capture_output=True
        ).stdout

    def status(self) -> dict[str, str]:
        """What the kernel tells of process 1."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def ended(self) -> bool:
        return self._outer.poll() is not None

    def stop(self, number: int, seconds: float) -> int:
        """Send process 1 a signal, and wait for its exit code."""
        os.kill(self.pid, number)
        return self._outer.wait(seconds)

    def kill(self) -> None:
        self._outer.kill()  # and with it what it holds
        self._outer.wait()


def _begin(root: Path) -> None:
    """An empty root beside this machine's programs."""
    for name in ("dev", "proc", "usr", "etc", "root", "tmp", _python()[1:]):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(os.readlink(f"/{name}"))
    (wheel,) = Path(_python(), "lib/python3.11/ensurepip/_bundled").glob("pip-*.whl")
    zipfile.ZipFile(wheel).extractall(f"{root}.packages")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for name in ("ld.so.cache", "resolv.conf", "hosts", "nsswitch.conf", "pip.conf", "login.defs"):
        if Path("/etc", name).is_file():
            shutil.copy(Path("/etc", name), root / "etc" / name)
    if Path("/etc/ssl").is_dir():
        shutil.copytree("/etc/alternatives", root / "etc/alternatives", symlinks=True)
        shutil.copytree("/etc/ssl/certs", root / "etc/ssl/certs", symlinks=False, ignore_dangling_symlinks=True)


def _run(image: Image, arguments: str) -> None:
    mount, _, script = arguments.rpartition("--mount=type=cache,target=")
    caches = {}
    if not mount and arguments.startswith("--mount"):
        target, _, script = script.partition(" ")
        caches = {target: _pip_cache()}
    assert not script.startswith("--"), f"{script} is not known here"
    given = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    own = Image(image.root, {"HOME": "/root", **given, **image.environment}, image.folder, image.user)
    done = subprocess.run(
        _sandboxed(own, ["/bin/sh", "-c", script], caches=caches), capture_output=True, text=True, env={}
    )
    assert done.returncode == 0, f"RUN {script}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def _copy(image: Image, arguments: str, context: Path, images: dict[str, Image]) -> None:
    words = arguments.split()
    source = context
    if words[0].startswith("--from="):
        source = images[words.pop(0).removeprefix("--from=")].root
    (origin, target) = words
    place = image.root / os.path.normpath(os.path.join(image.folder, target))[1:]
    shutil.copytree(source / origin.lstrip("/"), place, symlinks=True, dirs_exist_ok=True, copy_function=os.link)


def _sandboxed(
    image: Image,
    command: list[str],
    own: bool = False,
    writable: list[str] | None = None,
    caches: dict[str, str] | None = None,
) -> list[str]:
    """A command in an image's root, as process 1. own: with a network of its own and a read-only root but for writable."""
    root = str(image.root)
    lines = [f"mount --bind {root} {root}"]
    if own:
        lines += ["ip link set lo up", f"mount -o remount,bind,ro {root}"]
    lines += [
        f"mount --bind /usr {root}/usr && mount -o remount,bind,ro {root}/usr",
        f"mount --bind {_python()} {root}/usr/local && mount -o remount,bind,ro {root}/usr/local",
        f"mount --bind {_python()} {root}{_python()} && mount -o remount,bind,ro {root}{_python()}",  # its own libraries
        f"mount --bind {root}.packages {root}/usr/local/lib/python3.11/site-packages",
        f"mount --rbind /dev {root}/dev",
        f"mount -t proc proc {root}/proc",
    ]
    for folder in writable or []:
        lines.append(f"mount --bind {root}.volumes{folder} {root}{folder}")
        volume = Path(f"{root}.volumes{folder}")
        shutil.copytree(root + folder, volume)  # as a new volume begins: with the image's files, and their owner
        status = os.stat(root + folder)
        os.chown(volume, status.st_uid, status.st_gid)
    for target, source in (caches or {}).items():
        lines.append(f"mkdir -p {root}{target} && mount --bind {source} {root}{target}")
    environment = [f"{name}={value}" for name, value in image.environment.items()]
    user, group = image.user.split(":")
    entered = [
        "chroot", root, "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups",
        *(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"] if own else []),
        "env", "-i", f"--chdir={image.folder}", *environment, *command,
    ]  # fmt: skip
    script = " && ".join(lines) + f" && exec {shlex.join(entered)}"
    spaces = ["--mount", "--pid", "--fork", "--kill-child", "--propagation=private", *(["--net"] if own else [])]
    return ["/usr/bin/env", f"PATH={_PATH}", "unshare", *spaces, "sh", "-c", script]


def _python() -> str:
    """The folder to see as /usr/local: this Python's, whose `python` the image has there."""
    assert sys.version_info[:2] == (3, 11), "the image has Python 3.11"
    assert sys.base_prefix != "/usr", "a Python of its own folder is needed, not the system's"
    return sys.base_prefix


def _pip_cache() -> str:
    done = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], check=True, capture_output=True, text=True)
    folder = done.stdout.strip()
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder
