"""One error class per kind of cause. An error holds its subject, what was found, and the cure.

The command line prints an error as one line and exits with the kind's `exit_code` (2 is argparse's own, 130 an interrupt).
"""

from pathlib import Path


class FusionerError(Exception):
    """Base class. The command line prints it without a traceback.

    found: what was found and what was expected. cure: what to do, or "". subject: the file or option at fault, or None.
    `str()` is one line: subject: found; cure.
    """

    exit_code = 1

    def __init__(self, found: str, cure: str = "", subject: str | Path | None = None) -> None:
        super().__init__(found, cure, subject)
        self.found, self.cure, self.subject = found, cure, subject

    @property
    def what(self) -> str:
        """subject: found."""
        return self.found if self.subject is None else f"{self.subject}: {self.found}"

    def __str__(self) -> str:
        return f"{self.what}; {self.cure}" if self.cure else self.what

    def without(self, subject: object) -> "FusionerError":
        """The error without its subject where that is `subject`, which the printed line then names already."""
        return type(self)(self.found, self.cure) if self.subject == subject else self


def one_line(error: BaseException) -> str:
    """Another library's message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class UsageError(FusionerError):
    """An invalid argument or call: a threshold of 3, a size of 0, a closed session."""

    exit_code = 2


def session_closed() -> UsageError:
    """The error of any call on a closed session."""
    return UsageError("this session is closed", "open another")


class PictureMissing(FusionerError):
    """The picture file does not exist or cannot be opened."""

    exit_code = 10


class PictureUnreadable(FusionerError):
    """The file is not a picture, or a broken or unsupported one."""

    exit_code = 11


class PictureTooLarge(FusionerError):
    """More pixels than the limit. The header tells, before anything is decoded."""

    exit_code = 12


class PictureInvalid(FusionerError):
    """An object of the wrong type, dtype or shape for a picture."""

    exit_code = 13


class WordsInvalid(FusionerError):
    """No words, or an empty, repeated or unprintable one."""

    exit_code = 20


class TooManyWords(FusionerError):
    """More words than the bundle's profile was built for."""

    exit_code = 21


class TemplatesInvalid(FusionerError):
    """A prompt template without `{category}`."""

    exit_code = 22


class WordUnreadable(FusionerError):
    """The tokenizer knows no part of the word."""

    exit_code = 23


class BundleMissing(FusionerError):
    """The folder holds no bundle."""

    exit_code = 30


class ManifestInvalid(FusionerError):
    """manifest.json is not the JSON that docs/bundle.md describes."""

    exit_code = 31


class BundleVersionUnknown(FusionerError):
    """This version does not read the bundle's format version."""

    exit_code = 32


class BundleFileMissing(FusionerError):
    """A file of the manifest is not in the folder."""

    exit_code = 33


class BundleFileAltered(FusionerError):
    """A file's size or hash is not the manifest's."""

    exit_code = 34


class FetchFailed(FusionerError):
    """A URL cannot be downloaded: no such host or file, a connection that broke, a redirect that is not followed."""

    exit_code = 70


class ArchiveInvalid(FusionerError):
    """What was downloaded has another digest than was given, or is no archive of a bundle."""

    exit_code = 71


class GraphUnusable(FusionerError):
    """A graph cannot be loaded or run, or gave values that are not finite."""

    exit_code = 35


class KernelsUnusable(FusionerError):
    """The bundle holds no compiled kernels, none for this GPU, or a record this version cannot read."""

    exit_code = 36


class PlanMissing(FusionerError):
    """The bundle holds no TensorRT plan of the requested flavour."""

    exit_code = 37


class PlanForAnotherGpu(FusionerError):
    """A TensorRT plan was built for GPUs of another compute capability."""

    exit_code = 38


class PlanForAnotherVersion(FusionerError):
    """A TensorRT plan was built with another version than the one installed."""

    exit_code = 39


class PlanUnusable(FusionerError):
    """TensorRT cannot load or run a plan, or the plan does not match the manifest."""

    exit_code = 44


class BackendUnavailable(FusionerError):
    """The requested backend is unknown, not installed or does not work here."""

    exit_code = 40


class SizeOutsideProfile(FusionerError):
    """A size, batch or number of words outside the profiles of the bundle or its plan."""

    exit_code = 41


class CudaFailed(FusionerError):
    """A call of the CUDA driver returned an error."""

    exit_code = 42


class GpuMemoryShort(CudaFailed):
    """The GPU has too little free memory."""

    exit_code = 45


class AnswerWrong(FusionerError):
    """A backend's results differ from the bundle's known answer."""

    exit_code = 46


class DeviceArrayInvalid(FusionerError):
    """An array in GPU memory of the wrong dtype, shape, layout, alignment or device."""

    exit_code = 43


class PackageMissing(FusionerError):
    """A call needs a package that is optional and not installed, or that cannot be imported."""

    exit_code = 47


class OutputUnwritable(FusionerError):
    """A result cannot be written to its path."""

    exit_code = 50


class OverlayTooLarge(OutputUnwritable):
    """The overlay is larger than its file format allows; .overlay.png has no limit."""

    exit_code = 51


class PicturesFailed(FusionerError):
    """Pictures of a run failed with different kinds of errors."""

    exit_code = 60
