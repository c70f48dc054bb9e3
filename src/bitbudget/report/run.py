"""What a run took, in words."""

from typing import Any

from bitbudget.report.sizes import size


def run_lines(found: dict[str, Any]) -> str:
    """Tokens and time, and below them the memory. `found` is what `run --json` prints."""
    counted = f"{found['tokens']} tokens in {found['seconds']:.1f} s, {found['tokens_per_second']:.1f} tokens/s"
    return f"{counted}\n{memory_line(found['memory'])}"


def memory_line(memory: dict[str, Any]) -> str:
    """What was measured, what was promised, and of what the promise is the sum. `memory` is `RunMemory.to_dict()`."""
    measured = "" if memory["exact"] else " (the most ever held: this system tells no more)"
    beside = f"{size(memory['libraries'])} of interpreter, libraries and tokenizer"
    text = f"memory: {size(memory['peak'])} at the peak{measured} beside {beside}; "
    promise = memory["promise"]
    if promise is None:
        return text + f"nothing was promised. {memory['unknown']}"
    parts = {
        "weights": memory["weights"],
        "packing them": memory["packing"],
        f"key-value cache of {promise['context']:,} tokens": promise["kv_cache"],
        "activations": promise["activations"],
        "workspace": promise["workspace"],
        "reserve": promise["reserve"],
    }
    listed = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in parts.items() if nbytes)
    return text + f"promised {size(memory['promised'])} ({listed})"
