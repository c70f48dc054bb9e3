"""The tokenizer of a model folder, and its own rule about the tokens that begin a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitbudget.errors import InputError

_PROBE = "The quick brown fox."
_BATCH = 1024  # texts whose ids are in memory at once while only their lengths are wanted


@dataclass(frozen=True)
class Tokenizer:
    """What text needs of a tokenizer: ids, lengths, chats; loaded by transformers, used without torch.

    prefix: the ids that `tokenizer(text)` puts before a text (BOS for Llama or Gemma, none for Qwen or GPT-2). A token
    that the tokenizer would add at the end is never used, for a window ends in the middle of a text.
    """

    folder: Path
    prefix: tuple[int, ...]
    encoder: Any  # transformers.PreTrainedTokenizerBase

    @classmethod
    def open(cls, folder: Path | str, trust_remote_code: bool = False) -> "Tokenizer":
        """Loads the tokenizer files of a local model folder.

        Raises InputError where transformers cannot build a working tokenizer from them.
        """
        # Imported here: reading and splitting JSONL needs neither transformers nor the seconds that it takes to import.
        from transformers import AutoTokenizer

        try:
            encoder = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # transformers and tokenizers raise whatever their parsers meet
            raise InputError(
                f"No tokenizer could be loaded from {folder}: {_first_line(error)} Put the tokenizer files of the "
                "model (tokenizer.json, or its vocabulary files, and tokenizer_config.json) into that folder."
            ) from error
        return cls(Path(folder), _prefix(encoder, Path(folder)), encoder)

    def encode(self, text: str) -> list[int]:
        """The ids of a text without the prefix, also where the text itself (a rendered chat) begins with it."""
        ids = _ids(self.encoder, text, special=False)
        written = len(self.prefix) if self.prefix and tuple(ids[: len(self.prefix)]) == self.prefix else 0
        return ids[written:]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The number of ids of every text, each encoded alone and without the prefix."""
        result: list[int] = []
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            encoded = self.encoder(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
            result += [len(ids) for ids in encoded["input_ids"]]
        return result

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A chat as the text that the model's chat template makes of it.

        Raises InputError where there is no template or the template refuses the messages.
        """
        if not self.encoder.chat_template:
            raise InputError(
                f"The tokenizer in {self.folder} has no chat template, so `messages` cannot be turned into text. "
                "Give lines with `text` instead, or add the model's chat_template.jinja to its folder."
            )
        try:
            return str(self.encoder.apply_chat_template(list(messages), tokenize=False))
        except Exception as error:  # a template is a program of the model's author: it may raise anything
            raise InputError(
                f"The chat template in {self.folder} refuses these messages: {_first_line(error)} "
                "Give messages with the roles and fields that the model was made for."
            ) from error


def _prefix(encoder: Any, folder: Path) -> tuple[int, ...]:
    plain = _ids(encoder, _PROBE, special=False)
    whole = _ids(encoder, _PROBE, special=True)
    starts = [at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain]
    if not plain or not starts:
        raise InputError(
            f"The tokenizer in {folder} turns {_PROBE!r} into {plain} without and {whole} with special tokens, but the "
            "first should be in the second: vocabulary files are missing or damaged. Copy them from the model again."
        )
    return tuple(whole[: starts[0]])


def _ids(encoder: Any, text: str, special: bool) -> list[int]:
    # verbose=False: a document may well be longer than the model's context, it is cut into windows afterwards.
    encoded = encoder(text, add_special_tokens=special, return_attention_mask=False, verbose=False)
    return list(encoded["input_ids"])


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith((".", "!", "?")) else line + "."
