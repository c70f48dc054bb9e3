"""Weights that transformers shares between two modules, and how a stored weight is shared.

transformers ties parameters: it sets `head.weight = embedding.weight`. A stored weight has no such parameter, so its
ties are taken out of the lists that transformers works through, and the head becomes a module that uses the embedding's
tensors. `config.tie_word_embeddings` stays as it is: it says so of the saved file too.
"""

from collections.abc import Set
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from bitbudget.errors import InputError
from bitbudget.kernels.linear import QuantEmbedding, TiedLinear

WEIGHT = ".weight"


@dataclass(frozen=True)
class Tie:
    """Module paths: `head` takes the weight of `embedding`."""

    head: str
    embedding: str


def ties_of(model: PreTrainedModel) -> tuple[Tie, ...]:
    """The ties of weights that the model class and its config ask for."""
    pairs = model.all_tied_weights_keys.items()
    return tuple(
        Tie(target.removesuffix(WEIGHT), source.removesuffix(WEIGHT))
        for target, source in pairs
        if target.endswith(WEIGHT) and source.endswith(WEIGHT)
    )


def release(model: PreTrainedModel, ties: tuple[Tie, ...], stored: Set[str]) -> None:
    """Make transformers forget the ties of stored modules, also when `tie_weights` is called later on.

    To be called while the modules are still those of the model class: its patterns are looked up in their parameters.
    """
    gone = {f"{tie.head}{WEIGHT}" for tie in ties if tie.head in stored or tie.embedding in stored}
    if not gone:
        return
    for path, module in list(model.named_modules()):
        if not isinstance(module, PreTrainedModel) or not module._tied_weights_keys:
            continue
        start = f"{path}." if path else ""
        own = module.get_expanded_tied_weights_keys(all_submodels=False)
        if any(start + target in gone for target in own):
            # On this one object: the class keeps its list.
            module._tied_weights_keys = {target: source for target, source in own.items() if start + target not in gone}
    model.all_tied_weights_keys = {
        target: source for target, source in model.all_tied_weights_keys.items() if target not in gone
    }


def tie_heads(model: PreTrainedModel, ties: list[Tie]) -> None:
    """Let heads multiply with the stored weight of their embedding; InputError if one is no linear."""
    for tie in ties:
        head, embedding = model.get_submodule(tie.head), model.get_submodule(tie.embedding)
        if not isinstance(head, nn.Linear) or not isinstance(embedding, QuantEmbedding):
            raise InputError(
                f"{tie.head} ({type(head).__name__}) shares the quantized weight of {tie.embedding} "
                f"({type(embedding).__name__}). Only a linear head can use the weight of a quantized embedding; "
                "quantize the model again with that layer kept in 16 bits."
            )
        parent, _, leaf = tie.head.rpartition(".")
        setattr(model.get_submodule(parent), leaf, TiedLinear(embedding, head.bias))
