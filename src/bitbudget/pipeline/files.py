"""Files beside the weights: what is copied to the output, what is left out and why."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from bitbudget.checkpoint.write import copy_atomic

WRITTEN_BY_US = frozenset(
    {"config.json", "bitbudget.json", "README.md", "model.safetensors.index.json", "run.jsonl", "journal.jsonl"}
)
WEIGHT_SUFFIXES = {
    ".safetensors": "weights, written anew",
    ".bin": "pickled weights are never read or copied",
    ".pt": "pickled weights are never read or copied",
    ".pth": "pickled weights are never read or copied",
    ".pkl": "pickled weights are never read or copied",
    ".ckpt": "pickled weights are never read or copied",
    ".gguf": "weights of another format",
    ".onnx": "weights of another format",
    ".h5": "weights of another format",
    ".msgpack": "weights of another format",
    ".index.json": "index of the source's shards, written anew",
}
SOURCE_CARD = "SOURCE_README.md"


@dataclass(frozen=True)
class OtherFiles:
    """copied: source file -> name in the output. left_out: source file -> reason. Names are relative to the folders."""

    copied: dict[str, str]
    left_out: dict[str, str]

    @classmethod
    def of(cls, source: Path) -> "OtherFiles":
        """Sort every file of a source folder, in order of name."""
        copied: dict[str, str] = {}
        left_out: dict[str, str] = {}
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if path.is_dir():
                continue
            reason = _reason(name)
            if reason:
                left_out[name] = reason
            else:
                copied[name] = SOURCE_CARD if name == "README.md" else name
        return cls(copied, left_out)

    def copy(self, source: Path, output: Path) -> dict[str, str]:
        """Copy the files; returns output name -> sha256 of the content."""
        hashes = {}
        for name, target in self.copied.items():
            (output / target).parent.mkdir(parents=True, exist_ok=True)
            copy_atomic(source / name, output / target)
            hashes[target] = sha256((output / target).read_bytes()).hexdigest()
        return hashes


def _reason(name: str) -> str | None:
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden file"
    if "__pycache__" in name.split("/"):
        return "cache"
    for suffix, reason in WEIGHT_SUFFIXES.items():
        if name.endswith(suffix):
            return reason
    if name == "config.json":
        return "written anew with the quantization_config"
    if name in WRITTEN_BY_US and name != "README.md":
        return "a file of this name is written by bitbudget"
    return None
