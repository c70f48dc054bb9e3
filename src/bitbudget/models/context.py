"""How long a context a model was made for."""

from transformers import PreTrainedConfig

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


def longest_context(config: PreTrainedConfig) -> int | None:
    """The longest context that a config names, in tokens; None where it names none."""
    text = config.get_text_config(decoder=True)
    found = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return next((length for length in found if isinstance(length, int) and length > 0), None)
