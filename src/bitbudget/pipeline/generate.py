"""Text from a loaded model, piece by piece."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TextStreamer

from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.errors import InputError
from bitbudget.pipeline.cache import reserved_cache
from bitbudget.pipeline.memory import PROMPT_CHUNK, cache_name


@dataclass(frozen=True)
class Sampling:
    """How the next token is found: temperature 0 takes the most likely one; above, it is drawn, with the seed."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def to_generate(self) -> dict[str, Any]:
        """The words of transformers' `generate`. The checkpoint's own top_k and top_p hold for drawing only."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature}


@dataclass(frozen=True)
class Generated:
    """What came out. seconds: from the prompt to the last token; ended: false where the limit cut the text off."""

    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    ended: bool

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


class _Pieces(TextStreamer):
    """Hands finished words to `emit`."""

    def __init__(self, encoder: Any, emit: Callable[[str], None]) -> None:
        super().__init__(encoder, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._emit(text)


def has_chat_template(tokenizer: Tokenizer) -> bool:
    """Whether the model was made for chats."""
    return bool(tokenizer.encoder.chat_template)


def prompt_ids(tokenizer: Tokenizer, prompt: str, chat: bool) -> list[int]:
    """Token ids of the prompt: as the user's turn of a chat, or as the beginning of a text.

    Raises InputError for a prompt without a single token, or one that the chat template refuses.
    """
    if not chat:
        ids = [*tokenizer.prefix, *tokenizer.encode(prompt)]
        if ids:
            return ids
        raise InputError(
            "The prompt is empty, and this model's tokenizer begins a text with nothing. Give a few words."
        )
    try:
        rendered = tokenizer.encoder.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        raise InputError(
            f"The chat template in {tokenizer.folder} refuses the prompt: {error}. Use --raw to give it as plain text."
        ) from error
    # The template writes BOS itself where the model wants one.
    return list(tokenizer.encoder(rendered, add_special_tokens=False)["input_ids"])


def generate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    ids: list[int],
    sampling: Sampling,
    emit: Callable[[str], None],
    context: int,
) -> Generated:
    """Continue a prompt to at most `context` tokens; `emit` gets the text word by word.

    Raises:
        InputError: the prompt leaves no room in the context.
    """
    new_tokens = min(sampling.max_new_tokens, _room(context, len(ids)))
    prompt = torch.tensor([ids], device=model.device)
    pieces: list[str] = []

    def keep(text: str) -> None:
        pieces.append(text)
        emit(text)

    began = time.monotonic()
    # Not inference mode: the kernels share quantized inputs by the version that torch counts for other tensors only.
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sampling.seed)
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            streamer=_Pieces(tokenizer.encoder, keep),
            **_cached(model, len(ids), context),
            **_no_padding(model),
            **sampling.to_generate(),
        )
    count = output.shape[1] - len(ids)
    seconds = time.monotonic() - began
    return Generated("".join(pieces), len(ids), count, seconds, count < new_tokens)


def _room(context: int, prompt_tokens: int) -> int:
    """Tokens that fit behind the prompt."""
    if prompt_tokens >= context:
        raise InputError(
            f"The prompt has {prompt_tokens:,} tokens and the context {context:,}, so nothing fits behind it. Shorten the "
            "prompt, or give a larger context with --context if the model allows it."
        )
    return context - prompt_tokens


def _cached(model: PreTrainedModel, prompt_tokens: int, context: int) -> dict[str, Any]:
    """The cache; a long prompt goes in piece by piece, so that what is computed at once stays small."""
    cache = reserved_cache(model.config, context, min(PROMPT_CHUNK, context))
    if cache is None:  # transformers makes one that fits the model
        return {}
    chunks = {"prefill_chunk_size": PROMPT_CHUNK} if prompt_tokens > PROMPT_CHUNK else {}
    return {cache_name(model): cache, **chunks}


def _no_padding(model: PreTrainedModel) -> dict[str, Any]:
    """One prompt needs no padding, but transformers asks for a token wherever there is an end token."""
    if model.generation_config.pad_token_id is not None:
        return {}
    end = model.generation_config.eos_token_id
    return {"pad_token_id": end[0] if isinstance(end, list) else end}
