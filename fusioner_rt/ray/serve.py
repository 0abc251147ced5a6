"""A bundle as an application of Ray Serve: `fusioner-rt serve` in each replica, behind Ray's own HTTP, queue and autoscaling."""

import dataclasses
import difflib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..argument_checks import flag, named, shown, whole
from ..atomic_files import unwritable
from ..errors import UsageError
from ..optional_packages import optional
from ..serve.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .node_folder import NodeFolder

Bundle = str | os.PathLike[str]
_OURS = {"engines", "workers", "cores", "shared"}
"""Settings that the deployment makes itself."""
_NUMBERS = "PROMETHEUS_MULTIPROC_DIR"
_AHEAD = 8  # requests of a replica, for each that runs: their bodies, pictures and answers are on their way meanwhile
_BATCH = 8  # pictures of a call that a GPU is expected to take


def deployment(
    bundle: Bundle | Mapping[str, Bundle] | None = None,
    *,
    num_cpus: int = 1,
    num_gpus: float = 0,
    min_replicas: int = 1,
    max_replicas: int = 1,
    autoscaling: Mapping[str, Any] | None = None,
    handles_folder: str | os.PathLike[str] | None = None,
    name: str = "fusioner-rt",
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A `ray.serve.Application` for `serve.run`, with the routes of `fusioner-rt serve` (docs/serve.md, docs/ray.md).

    bundle: as `Session` takes it, on each node; or several by name, of which the first is the default.
    num_cpus: cores of a replica, which its threads fill and no more. num_gpus: GPUs of a replica, a share where several
    use one.
    min_replicas, max_replicas: between which Ray scales by the requests at hand. autoscaling: further fields of Serve's
    AutoscalingConfig.
    handles_folder: where replicas keep encoded pictures, which every node sees; by default each node has its own.
    options: of Serve's `deployment`, which replace those chosen here: max_ongoing_requests, ray_actor_options, …
    settings: those of `fusioner_rt.serve.settings.Settings`: queue, deadline, max_batch, token, cors, loopback, …

    Raises UsageError, PackageMissing.
    """
    serve = optional("ray.serve", "ray[serve]", "Ray Serve deployments", "'fusioner-rt[ray,serve]'")
    for package in ("starlette", "python-multipart", "prometheus-client"):
        optional(package.replace("-", "_"), package, "HTTP services", "'fusioner-rt[serve]'")
    num_cpus = whole(num_cpus, "num_cpus", 1, 4096, "give the cores of a replica")
    least = whole(min_replicas, "min_replicas", 0, 10_000, "give how many replicas there are at least")
    most = whole(max_replicas, "max_replicas", max(1, least), 10_000, "give min_replicas or more, and 1 at least")
    chosen = _settings(_engines(bundle), num_cpus, handles_folder, settings)
    at_once = _pictures_at_once(chosen, num_gpus)
    options, actor = dict(options or {}), {"num_cpus": num_cpus, "num_gpus": num_gpus}
    given: dict[str, Any] = {
        "max_ongoing_requests": _AHEAD * at_once,
        "max_queued_requests": chosen.queue,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "graceful_shutdown_timeout_s": chosen.deadline + 5,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_constructor_retry_count": 3,
        "ray_actor_options": {**actor, **options.pop("ray_actor_options", {})},
    }
    if least != most or autoscaling:
        load = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 2 * at_once}
        given["autoscaling_config"] = {**load, **(autoscaling or {})}
    else:
        given["num_replicas"] = least
    folder = secrets.token_hex(16)

    def app() -> "ASGIApp":
        return _app(chosen, folder)

    made = serve.deployment(name=name, **{**given, **options})(serve.ingress(app)(_Replica))
    return made.bind()


def application(arguments: Mapping[str, Any]) -> Any:
    """`deployment` for Serve's command line and its configuration files: serve run fusioner_rt.ray:application bundle=DIR.

    arguments: of `deployment`, by name; texts may be JSON, where no text is meant. Raises UsageError.
    """
    settings = {field.name: str(field.type) for field in dataclasses.fields(Settings) if field.name not in _OURS}
    texts = {"name", "handles_folder", *(name for name, kind in settings.items() if _kind(kind) == "str")}

    def read(name: str, given: Any) -> Any:
        try:
            return json.loads(given) if isinstance(given, str) and name not in texts else given
        except ValueError:
            return given

    return deployment(**{name: read(name, given) for name, given in arguments.items()})


class _Replica:
    """What Ray asks of a replica, beside requests. `app` is the ingress's."""

    app: "_BehindRay"

    async def check_health(self) -> None:
        """Ray replaces a replica of which this fails three times."""
        await self.app.service.check_health()

    async def reconfigure(self, config: Any) -> None:
        """Another user_config: load the bundles that have changed, without a gap."""
        await self.app.reload()


class _BehindRay:
    """The application of a replica, without the header that Ray's proxy adds itself."""

    def __init__(self, app: Any, folder: "NodeFolder") -> None:
        self._app, self._folder = app, folder
        self.service, self.reload = app.state.service, app.state.reload

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def without_id(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        try:
            await self._app(scope, receive, without_id)
        finally:
            if scope["type"] == "lifespan":  # its end
                _mark_dead(os.getpid())
                self._folder.leave()


def _app(settings: Settings, name: str) -> _BehindRay:
    """The application of a replica. name: of its node's folder. Raises the errors of `Session`, OutputUnwritable."""
    from .node_folder import NodeFolder

    folder = NodeFolder(name)
    try:
        return _BehindRay(_opened(settings, folder.path), folder)
    except BaseException:
        folder.leave()
        raise


def _opened(settings: Settings, folder: Path) -> Any:
    handles = settings.shared or folder / "handles"
    # Before prometheus_client is imported, which decides by it where a process keeps its numbers.
    numbers = Path(os.environ.setdefault(_NUMBERS, str(folder / "metrics")))
    for needed in (numbers, handles):
        try:
            needed.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(needed, error) from None
    from ..serve.app import create_app
    from .serve_batches import ServeBatches

    owners = {file.stem.rpartition("_")[2] for file in numbers.glob("*_*.db")}
    for process in map(int, filter(str.isdecimal, owners)):
        if not _is_alive(process):
            _mark_dead(process)
    return create_app(dataclasses.replace(settings, shared=handles), batcher=ServeBatches)


def _mark_dead(process: int) -> None:
    """Its gauges count no more; its counters do."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(process, os.environ[_NUMBERS])


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _engines(bundle: Bundle | Mapping[str, Bundle] | None) -> dict[str, str | None]:
    """Bundles by name. Raises UsageError."""
    if not isinstance(bundle, Mapping):
        return {"default": None if bundle is None else _found(bundle)}
    if not bundle:
        raise UsageError("no bundle is named", "give one at least: its folder or name")
    return {name: _found(given) for name, given in bundle.items()}


def _found(bundle: Bundle) -> str:
    """A folder of this machine by its whole path, as replicas run elsewhere; what is no folder here may be one there."""
    return str(Path(bundle).resolve()) if Path(bundle).is_dir() else os.fspath(bundle)


def _settings(
    engines: dict[str, str | None], num_cpus: int, folder: str | os.PathLike[str] | None, given: Mapping[str, Any]
) -> Settings:
    """Raises UsageError."""
    known = {field.name: str(field.type) for field in dataclasses.fields(Settings) if field.name not in _OURS}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"there is no setting {shown(name)}", f"{meant}the settings are {', '.join(known)}")
    checked = {name: _checked(value, name, known[name]) for name, value in given.items() if value is not None}
    shared = None if folder is None else Path(os.path.abspath(folder))
    return Settings(**{"loopback": True, **checked, "engines": engines, "cores": num_cpus, "shared": shared})


def _checked(given: Any, name: str, kind: str) -> Any:
    """A setting's value. kind: of the setting, as it is declared. Raises UsageError."""
    kind = _kind(kind)
    if kind == "int":
        return whole(given, name, 1, 1 << 40, "give a whole number of 1 or more")
    if kind == "bool":
        return flag(given, name)
    if kind == "float" and isinstance(given, (int, float)) and not isinstance(given, bool) and 0 <= given <= 86400:
        return float(given)
    if kind == "str" and isinstance(given, str):
        return given
    if kind == "tuple" and isinstance(given, (list, tuple)) and all(isinstance(one, str) for one in given):
        return tuple(given)
    expected = {"float": "a number of 0 to 86400", "str": "a text"}.get(kind, "a list of texts")
    raise UsageError(named(name, "hidden" if name == "token" else given), f"give {expected}")


def _kind(declared: str) -> str:
    return next(known for known in ("tuple", "bool", "int", "float", "str") if known in declared)


def _pictures_at_once(settings: Settings, num_gpus: float) -> int:
    from ..serve.models import shares

    return shares(settings)[0] * (settings.max_batch or (_BATCH if num_gpus else 1))
