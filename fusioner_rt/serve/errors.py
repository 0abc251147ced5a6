"""The service's own kinds of errors, each with its HTTP status."""

from typing import ClassVar

from ..errors import FusionerError


class ServiceError(FusionerError):
    """Base class of what HTTP adds. headers: of the answer."""

    exit_code = 100
    is_input: ClassVar[bool] = False
    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}


class RequestInvalid(ServiceError):
    """A field or a body that is not as it is described."""

    exit_code = 101
    is_input = True
    status = 400


class TokenWrong(ServiceError):
    """The request has no bearer token, or not the service's."""

    exit_code = 102
    is_input = True
    status = 401
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class OriginRefused(ServiceError):
    """A page of another site asks, and the service does not name it."""

    exit_code = 103
    is_input = True
    status = 403


class NotServed(ServiceError):
    """No such route, model or page."""

    exit_code = 104
    is_input = True
    status = 404


class HandleGone(ServiceError):
    """The handle of an encoded picture is unknown: it was dropped, or never was."""

    exit_code = 105
    is_input = True
    status = 404


class MethodWrong(ServiceError):
    """The route does not take this method."""

    exit_code = 106
    is_input = True
    status = 405


class FormUnknown(ServiceError):
    """The client accepts no form in which the service answers."""

    exit_code = 107
    is_input = True
    status = 406


class BodySlow(ServiceError):
    """The body did not arrive in time."""

    exit_code = 108
    is_input = True
    status = 408


class BodyTooLarge(ServiceError):
    """The body is larger than the service takes."""

    exit_code = 109
    is_input = True
    status = 413


class BodyUnknown(ServiceError):
    """A body of a type or coding that the service does not read."""

    exit_code = 110
    is_input = True
    status = 415


class ServiceFull(ServiceError):
    """More requests wait than the queue holds, or more bytes than the service keeps."""

    exit_code = 111
    is_input = False
    status = 503
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}


class DeadlinePassed(ServiceError):
    """The answer was not ready when the request's time was over."""

    exit_code = 112
    is_input = False
    status = 504


class Unforeseen(ServiceError):
    """An error that no check foresaw. The log has it by the request's id."""

    exit_code = 113
    is_input = False
    status = 500
