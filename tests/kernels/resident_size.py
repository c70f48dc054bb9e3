"""Run as a program: anonymous memory before, at the peak of and after a forward pass of one large layer, as JSON.

Arguments: choice, rows, columns, dtype of the input.
"""

import json
import sys
import threading

import torch

from bitbudget.kernels import QuantLinear
from bitbudget.storage import Choice


def anonymous_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def filled(choice: Choice, shape: tuple[int, int], dtype: torch.dtype) -> QuantLinear:
    """A layer with legal content, every page of it touched."""
    module = QuantLinear(choice, shape, dtype=dtype)
    for name, tensor in module.named_buffers():
        if name.endswith("rows"):
            tensor.copy_(torch.arange(len(tensor)))
        elif name.endswith("row_pointers"):
            tensor.copy_(torch.linspace(0, len(module.get_buffer("outliers.values")), len(tensor)))
        else:
            tensor.fill_(1)
    return module


def main() -> None:
    torch.set_num_threads(1)
    choice, shape = Choice.parse(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))
    dtype = getattr(torch, sys.argv[4])
    warm = filled(Choice.parse("int4:g8"), (64, 64), dtype)
    warm(torch.zeros(2, 64, dtype=dtype))  # what the libraries take at their first call is not ours
    x = torch.zeros(4, shape[1], dtype=dtype)
    before = anonymous_bytes()
    module = filled(choice, shape, dtype)
    held = anonymous_bytes() - before
    samples, finished = [0], threading.Event()

    def watch() -> None:
        while not finished.wait(0.001):
            samples.append(anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    module(x)
    finished.set()
    watcher.join()
    after = anonymous_bytes() - before
    print(json.dumps({"packed": choice.nbytes(shape), "held": held, "peak": max(samples), "after": after}))


if __name__ == "__main__":
    main()
