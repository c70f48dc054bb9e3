"""Runs a command and samples its memory: RssAnon + RssShmem, what the process itself holds, without mapped files."""

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """Wall seconds, peak of RssAnon + RssShmem in bytes, exit code and output of a finished command."""

    seconds: float
    peak_bytes: int
    code: int
    output: str


def sampled(command: list[str], interval: float = 0.01) -> Run:
    """Run a command to its end, sampling every `interval` seconds (Linux)."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        peak = max(peak, _held(status))
        time.sleep(interval)
    assert process.stdout is not None
    return Run(time.perf_counter() - started, peak, process.returncode, process.stdout.read())


def _held(status: Path) -> int:
    try:
        text = status.read_text()
    except OSError:  # it has just ended
        return 0
    return sum(int(kib) * 1024 for kib in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE))
