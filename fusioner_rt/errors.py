"""One error class per kind of cause. An error holds its subject, what was found, and the cure.

The command line prints an error as one line and exits with the kind's `exit_code` (2 is argparse's own, 130 an interrupt).
A service asks `is_input`: True where the caller's picture, words or arguments are at fault, False where the installation, the
bundle or the machine is.
"""

from pathlib import Path
from typing import ClassVar

from .printable_text import printable


class Spelled(str):
    """A text as the API says it. `command`: as the command line does."""

    command: str

    def __new__(cls, text: str, command: str) -> "Spelled":
        made = super().__new__(cls, text)
        made.command = command
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.command


def as_command(text: str) -> str:
    """A text as the command line says it."""
    return text.command if isinstance(text, Spelled) else text


class FusionerError(Exception):
    """Base class. The command line prints it without a traceback.

    found: what was found and what was expected. cure: what to do, or "". subject: the file or option at fault, or None.
    `str()` is one line: subject: found; cure.
    """

    exit_code = 1
    is_input: ClassVar[bool] = False

    def __init__(self, found: str, cure: str = "", subject: str | Path | None = None) -> None:
        super().__init__(found, cure, subject)
        self.found, self.cure, self.subject = found, cure, subject

    @property
    def what(self) -> str:
        """subject: found."""
        return _joined(self.found if self.subject is None else f"{self.subject}: {self.found}")

    def __str__(self) -> str:
        return _joined(f"{self.what}; {self.cure}") if self.cure else self.what

    def without(self, subject: object) -> "FusionerError":
        """The error without its subject where that is `subject`, which the printed line then names already."""
        return type(self)(self.found, self.cure) if self.subject == subject else self

    def as_command(self) -> "FusionerError":
        """The error as the command line says it."""
        return type(self)(as_command(self.found), as_command(self.cure), self.subject)


def _joined(text: str) -> str:
    """One line that is safe to show: a path or a word may hold line ends, or what moves a terminal's cursor."""
    return printable(" ".join(text.splitlines()))


def one_line(error: BaseException) -> str:
    """Another library's message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class UsageError(FusionerError):
    """An invalid argument or call: a threshold of 3, a size of 0, a closed session."""

    exit_code = 2
    is_input = True


class SessionClosed(UsageError):
    """A call on a closed session: it is the application that closed it."""

    exit_code = 3
    is_input = False


def session_closed() -> SessionClosed:
    """The error of any call on a closed session."""
    return SessionClosed("this session is closed", "open another")


class PictureMissing(FusionerError):
    """The picture file does not exist or cannot be opened."""

    exit_code = 10
    is_input = True


class PictureUnreadable(FusionerError):
    """The file is not a picture, or a broken or unsupported one."""

    exit_code = 11
    is_input = True


class PictureTooLarge(FusionerError):
    """More pixels than the limit. The header tells, before anything is decoded."""

    exit_code = 12
    is_input = True


class PictureInvalid(FusionerError):
    """An object of the wrong type, dtype or shape for a picture."""

    exit_code = 13
    is_input = True


class FrameUnreadable(PictureUnreadable):
    """A frame of a video cannot be decoded, or is damaged."""

    exit_code = 14
    is_input = True


class VideoUnreadable(FusionerError):
    """The file is not a video, holds no frames, or is broken from its beginning."""

    exit_code = 15
    is_input = True


class VideoUnreachable(FusionerError):
    """A camera or URL gives no video, or no more."""

    exit_code = 16
    is_input = False


class WordsInvalid(FusionerError):
    """No words, or an empty, repeated or unprintable one."""

    exit_code = 20
    is_input = True


class TooManyWords(FusionerError):
    """More words than the bundle's profile was built for."""

    exit_code = 21
    is_input = True


class TemplatesInvalid(FusionerError):
    """A prompt template without `{category}`."""

    exit_code = 22
    is_input = True


class WordUnreadable(FusionerError):
    """The tokenizer knows no part of the word."""

    exit_code = 23
    is_input = True


class BundleMissing(FusionerError):
    """The folder holds no bundle."""

    exit_code = 30
    is_input = False


class ManifestInvalid(FusionerError):
    """manifest.json is not the JSON that docs/bundle.md describes."""

    exit_code = 31
    is_input = False


class BundleVersionUnknown(FusionerError):
    """This version does not read the bundle's format version."""

    exit_code = 32
    is_input = False


class BundleFileMissing(FusionerError):
    """A file of the manifest is not in the folder."""

    exit_code = 33
    is_input = False


class BundleFileAltered(FusionerError):
    """A file's size or hash is not the manifest's."""

    exit_code = 34
    is_input = False


class GraphUnusable(FusionerError):
    """A graph cannot be loaded or run, or gave values that are not finite."""

    exit_code = 35
    is_input = False


class KernelsUnusable(FusionerError):
    """The bundle holds no compiled kernels, none for this GPU, or a record this version cannot read."""

    exit_code = 36
    is_input = False


class PlanMissing(FusionerError):
    """The bundle holds no TensorRT plan of the requested flavour."""

    exit_code = 37
    is_input = False


class PlanForAnotherGpu(FusionerError):
    """A TensorRT plan was built for GPUs of another compute capability."""

    exit_code = 38
    is_input = False


class PlanForAnotherVersion(FusionerError):
    """A TensorRT plan was built with another version than the one installed."""

    exit_code = 39
    is_input = False


class PlanUnusable(FusionerError):
    """TensorRT cannot load or run a plan, or the plan does not match the manifest."""

    exit_code = 44
    is_input = False


class BackendUnavailable(FusionerError):
    """The requested backend is unknown, not installed or does not work here."""

    exit_code = 40
    is_input = False


class BackendUnknown(BackendUnavailable):
    """No backend has this name."""

    exit_code = 47
    is_input = True


class SizeOutsideProfile(FusionerError):
    """A size, batch or number of words outside the profiles of the bundle or its plan."""

    exit_code = 41
    is_input = True


class MemoryShort(FusionerError):
    """The machine has too little free memory for a call, or lets no further thread start. The same call may do later."""

    exit_code = 49
    is_input = False


class CudaFailed(FusionerError):
    """A call of the CUDA driver returned an error."""

    exit_code = 42
    is_input = False


class GpuMemoryShort(CudaFailed, MemoryShort):
    """The GPU has too little free memory."""

    exit_code = 45
    is_input = False


class AnswerWrong(FusionerError):
    """A backend's results differ from the bundle's known answer."""

    exit_code = 46
    is_input = False


class DeviceArrayInvalid(FusionerError):
    """An array in GPU memory of the wrong dtype, shape, layout, alignment or device."""

    exit_code = 43
    is_input = True


class PackageMissing(FusionerError):
    """A call needs a package that is optional and not installed, or that cannot be imported."""

    exit_code = 48
    is_input = False


class OutputUnwritable(FusionerError):
    """A result cannot be written to its path."""

    exit_code = 50
    is_input = False


class OverlayTooLarge(OutputUnwritable):
    """The overlay is larger than its file format allows; .overlay.png has no limit."""

    exit_code = 51
    is_input = True


class FetchFailed(FusionerError):
    """A URL cannot be downloaded: no such host or file, a connection that broke, a redirect that is not followed."""

    exit_code = 52
    is_input = False


class ArchiveInvalid(FusionerError):
    """What was downloaded has another digest than was given, or is no archive of a bundle."""

    exit_code = 53
    is_input = False


class WordVectorsInvalid(FusionerError):
    """A file of word vectors is missing, cut short, altered, or none."""

    exit_code = 54
    is_input = False


class ClusterFailed(FusionerError):
    """Ray cannot be started or reached, or ended a run."""

    exit_code = 55
    is_input = False


class PicturesFailed(FusionerError):
    """Pictures of a run failed with different kinds of errors."""

    exit_code = 60
    is_input = True
