"""From an exception to the exit code and the one paragraph that a person reads."""

import errno
from dataclasses import dataclass
from pathlib import Path

from bitbudget.checkpoint.journal import JOURNAL_NAME
from bitbudget.errors import BitbudgetError
from bitbudget.pipeline.record import CONFIG_NAME, RECORD_NAME

OK, INTERNAL, USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = {
    0: "done",
    1: "internal error, or out of memory",
    2: "the command line is not understood",
    3: "a model, text, checkpoint or choice cannot be used",
    4: "no choice meets the budget",
    5: "a checkpoint failed its verification",
    6: "the output folder or disk cannot take the result",
    130: "stopped with Ctrl-C",
}
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # how torch's allocators say it
ISSUES = "This is a mistake of bitbudget, not yours."


@dataclass(frozen=True)
class Failure:
    """Why a command ended early. kind: the class of the error, for programs."""

    exit_code: int
    kind: str
    message: str

    def to_dict(self) -> dict[str, object]:
        return {"error": {"kind": self.kind, "message": self.message, "exit_code": self.exit_code}}


def explain(error: BaseException, interrupted: str) -> Failure:
    """What to tell of an exception; `interrupted` says what a stopped command left behind."""
    kind = type(error).__name__
    if isinstance(error, BitbudgetError):
        return Failure(error.exit_code, kind, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, "Interrupted", f"Stopped. {interrupted}")
    if _is_out_of_memory(error):
        return Failure(INTERNAL, "OutOfMemory", _out_of_memory(error))
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Failure(6, kind, f"The disk is full ({error}). Make room and give the same command again.")
    text = " ".join(str(error).split()) or "no message"
    return Failure(
        INTERNAL, kind, f"Something went wrong inside: {kind}: {text}. {ISSUES} Run again with --debug to see where."
    )


def left_behind(output: Path) -> str:
    """What a stopped `quantize` left in its output folder, and how to go on."""
    if (output / JOURNAL_NAME).is_file():
        return f"What was finished is kept in {output}: give the same command again and it continues there."
    if (output / RECORD_NAME).is_file() and (output / CONFIG_NAME).is_file():
        return f"The checkpoint in {output} is complete but not verified: `bitbudget verify {output} --against MODEL`."
    return "Nothing was written: give the same command again."


def _is_out_of_memory(error: BaseException) -> bool:
    # torch is not imported here, so its own class is known by its name.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _out_of_memory(error: BaseException) -> str:
    said = (str(error).strip().splitlines() or [""])[0]
    said = f" ({said})" if said else ""
    if "CUDA" in said:
        return (
            f"The memory of the CUDA device is used up{said}. Stop other programs that use the device, or compute on "
            "the CPU with --device cpu."
        )
    return (
        f"The memory of this machine is used up{said}. `bitbudget forecast MODEL` tells how much a run needs; stop "
        "other programs, or measure on fewer tokens (--tokens)."
    )
