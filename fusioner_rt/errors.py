"""One class per kind of cause. An error holds three facts: its subject, what was found of it, and the cure.

The command line prints them as one line and exits with the kind's `exit_code` (2 is argparse's own, 130 an interrupt).
"""


class FusionerError(Exception):
    """Base of all. The command line catches it and prints it without a traceback.

    found: what was found and what was expected. cure: what to do about it, or "". subject: the file or option that the
    error is about, or None. `str()` is one line: subject: found; cure.
    """

    exit_code = 1

    def __init__(self, found: str, cure: str = "", subject: object = None) -> None:
        super().__init__(found, cure, subject)
        self.found, self.cure, self.subject = found, cure, subject

    @property
    def what(self) -> str:
        """subject: found."""
        return self.found if self.subject is None else f"{self.subject}: {self.found}"

    def __str__(self) -> str:
        return f"{self.what}; {self.cure}" if self.cure else self.what

    def without(self, subject: object) -> "FusionerError":
        """For a line that names this subject already: the error without it where it is the error's."""
        return type(self)(self.found, self.cure) if self.subject == subject else self


def one_line(error: BaseException) -> str:
    """Another library's message, fit to stand inside ours: one line, at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class UsageError(FusionerError):
    """An argument outside its meaning: a threshold of 3, a size of 0, a closed session."""

    exit_code = 2


class PictureMissing(FusionerError):
    """The path does not lead to a file that can be opened."""

    exit_code = 10


class PictureUnreadable(FusionerError):
    """The file is not a picture, or a broken or unsupported one."""

    exit_code = 11


class PictureTooLarge(FusionerError):
    """More pixels than the limit; told from the header, before any is decoded."""

    exit_code = 12


class PictureInvalid(FusionerError):
    """An object in memory that is no picture: wrong type, dtype or shape."""

    exit_code = 13


class WordsInvalid(FusionerError):
    """No words, or an empty or repeated one."""

    exit_code = 20


class TooManyWords(FusionerError):
    """More words than the bundle's profile was built for."""

    exit_code = 21


class TemplatesInvalid(FusionerError):
    """A prompt template without its place for the word."""

    exit_code = 22


class WordUnreadable(FusionerError):
    """A word of which the text encoder's tokenizer knows no part: its vector would mean nothing."""

    exit_code = 23


class BundleMissing(FusionerError):
    """No bundle where one was looked for."""

    exit_code = 30


class ManifestInvalid(FusionerError):
    """manifest.json is not the JSON that docs/bundle.md describes."""

    exit_code = 31


class BundleVersionUnknown(FusionerError):
    """The bundle's format is newer (or other) than this version reads."""

    exit_code = 32


class BundleFileMissing(FusionerError):
    """A file of the manifest is not in the folder."""

    exit_code = 33


class BundleFileAltered(FusionerError):
    """A file's bytes are not those the manifest was written for."""

    exit_code = 34


class GraphUnusable(FusionerError):
    """A graph cannot be loaded or run, or computed something that is not a number."""

    exit_code = 35


class KernelsUnusable(FusionerError):
    """The bundle holds no compiled kernels, none for this GPU, or a record that this version does not read."""

    exit_code = 36


class PlanMissing(FusionerError):
    """The bundle holds no TensorRT plan of the flavour asked for."""

    exit_code = 37


class PlanForAnotherGpu(FusionerError):
    """A TensorRT plan was built for GPUs of another compute capability."""

    exit_code = 38


class PlanForAnotherVersion(FusionerError):
    """A TensorRT plan was built with another version than the one installed."""

    exit_code = 39


class PlanUnusable(FusionerError):
    """TensorRT does not load a plan, cannot run it, or it is not the plan of the graph the manifest says."""

    exit_code = 44


class BackendUnavailable(FusionerError):
    """The backend asked for is unknown, not installed, or fell back to another silently."""

    exit_code = 40


class SizeOutsideProfile(FusionerError):
    """A network input, or words and pictures together, outside what the bundle or its plan was built for."""

    exit_code = 41


class CudaFailed(FusionerError):
    """A call of the CUDA driver returned an error."""

    exit_code = 42


class GpuMemoryShort(CudaFailed):
    """The GPU has too little free memory."""

    exit_code = 45


class AnswerWrong(FusionerError):
    """A backend computes something else than the bundle's CPU path: a plan that is wrong, or wrong on this GPU."""

    exit_code = 46


class DeviceArrayInvalid(FusionerError):
    """An array in GPU memory of the wrong dtype, shape, layout, alignment or device."""

    exit_code = 43


class OutputUnwritable(FusionerError):
    """A result cannot be written where it should go."""

    exit_code = 50


class OverlayTooLarge(OutputUnwritable):
    """More pixels an edge than the overlay's file format holds; .overlay.png holds any."""

    exit_code = 51


class PicturesFailed(FusionerError):
    """Some pictures of a run failed, for different kinds of reasons."""

    exit_code = 60
