"""Any error as a problem document of RFC 9457, in the service's words, without paths of the server."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import (
    FusionerError,
    MemoryShort,
    OverlayTooLarge,
    PackageMissing,
    PictureTooLarge,
    PictureUnreadable,
    SessionClosed,
    SizeOutsideProfile,
    TooManyWords,
    one_line,
)
from .errors import ServiceError, Unforeseen

if TYPE_CHECKING:
    from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
_STATUS: dict[type[FusionerError], int] = {
    PictureTooLarge: 413,
    OverlayTooLarge: 413,
    PictureUnreadable: 422,
    PackageMissing: 501,
    SessionClosed: 503,
    MemoryShort: 503,
}

_CURES: dict[type[FusionerError], str] = {
    TooManyWords: "give fewer words",
    SizeOutsideProfile: "send a picture whose edges differ less",
}
"""Of errors whose own cure is for those who have the bundle at hand."""
_TELL = "tell who runs this service: its log has the cure by this id"


def status_of(error: FusionerError) -> int:
    """The HTTP status of an error, by its kind."""
    if isinstance(error, ServiceError):
        return error.status
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status
    return 400 if error.is_input else 500


def as_known(error: BaseException) -> FusionerError:
    """An error as one that has a kind; what nobody foresaw says nothing of the server."""
    if isinstance(error, FusionerError):
        return error
    if isinstance(error, MemoryError):
        return MemoryShort("there is too little memory for it", "send it again later, or a smaller picture")
    return Unforeseen("the service failed", "send it again; the service's log has the cause by this id")


def document(error: FusionerError, request_id: str) -> dict[str, Any]:
    """The problem document of an error."""
    kind = type(error)
    subject = _plain(str(error.subject)) if isinstance(error.subject, str) and not _is_path(error.subject) else None
    found, cure = _plain(error.found), _plain(_cure(error))
    title = re.split(r"[.:;] |\n", kind.__doc__ or kind.__name__)[0].rstrip(".")  # examples are of another error
    said = found if subject is None else f"{subject}: {found}"
    return {
        "type": f"urn:fusioner-rt:{kind.__name__}",
        "title": title,
        "status": status_of(error),
        "detail": f"{said}; {cure}" if cure else said,
        "code": kind.exit_code,
        "found": found,
        "cure": cure,
        "subject": subject,
        "is_input": kind.is_input,
        "id": request_id,
    }


def response(error: FusionerError, request_id: str, path: str) -> "Response":
    """The answer to a request that failed. path: of its route."""
    from starlette.responses import Response  # Triton has documents without it

    told = document(error, request_id)
    if path.startswith("/v2"):  # where clients of that protocol look
        told["error"] = told["detail"]
    content = json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")
    headers = dict(error.headers) if isinstance(error, ServiceError) else {}
    status = status_of(error)
    if status == 503:
        headers.setdefault("Retry-After", "1")
    return Response(content, status, headers, MEDIA_TYPE)


def logged(error: BaseException) -> str:
    """An error as the log has it."""
    return f"{type(error).__name__}: {one_line(error)}"


def _cure(error: FusionerError) -> str:
    if isinstance(error, ServiceError) or (error.is_input and type(error) not in _CURES):
        return error.cure
    return _CURES.get(type(error), _TELL)


def _is_path(subject: str) -> bool:
    return Path(subject).is_absolute()


def _plain(text: str) -> str:
    """One line, without folders: those of bundles are not named, and of another absolute path its last name alone."""
    text = re.sub(r"\b(?:the|this) bundle in \S+", "this bundle", text)
    return re.sub(r"(?<![\w:/.])/(?:[^\s/;,'\"()]+/)+([^\s/;,'\"()]*)", r"…/\1", " ".join(text.split()))
