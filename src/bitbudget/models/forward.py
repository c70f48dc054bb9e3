"""The model's own forward on one sequence, with the decoder blocks and the embedding's table replaced."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitbudget.models.filling import Filler
from bitbudget.models.layers import Places
from bitbudget.models.recording import Stop, replaced_forward

OnBlock = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]


class ModelForward:
    """Masks, rotary embeddings, scaling, final norm and head are the model's; what a block does is the caller's."""

    def __init__(self, model: PreTrainedModel, filler: Filler, places: Places) -> None:
        self.model = model
        self.blocks: list[nn.Module] = list(model.get_submodule(places.blocks))
        self.blocks_path = places.blocks
        self.embedding = model.get_submodule(places.embedding)
        self.head = model.get_submodule(places.head) if places.head else None
        self._filler = filler
        self._table = f"{places.embedding}.weight"

    def run(
        self,
        sequence: Int[Tensor, " tokens"],
        on_block: OnBlock,
        embed: Callable[..., Tensor],
        on_head: Callable[[Tensor], None] | None = None,
    ) -> Any:
        """The model's output; None if a callback raised `Stop`.

        `on_block(index, args, kwargs)` stands for the blocks, `embed` for the input embedding; `on_head`
        sees what the head receives before the head is loaded.
        """
        modules = [*self.blocks, self.embedding]
        forwards: list[Callable[..., Any]] = [self._forwarded(on_block, index) for index in range(len(self.blocks))]
        forwards.append(embed)
        with ExitStack() as stack:
            if on_head is not None and self.head is not None:
                # Ahead of the hook that would load the head.
                hook = self.head.register_forward_pre_hook(lambda _, args: on_head(args[0]), prepend=True)
                stack.callback(hook.remove)
            stack.enter_context(replaced_forward(modules, forwards))
            try:
                return self.model(input_ids=sequence[None], use_cache=False)
            except Stop:
                return None

    def embed_rows(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The embedding's own forward on a table of only those rows that occur: the whole table is never in memory."""
        present, places = torch.unique(ids, return_inverse=True)
        return self.embed_from(self.table_rows(present), places, *args, **kwargs)

    def table_rows(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """Rows of the embedding's table."""
        return self._filler.rows(self._table, ids)

    def embed_from(self, rows: Float[Tensor, "n width"], places: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The embedding's own forward with `rows` as its table; gradients reach them."""
        module = self.embedding
        padding, table = module.padding_idx, module._parameters.pop("weight")
        try:
            module.__dict__["weight"] = rows
            module.padding_idx = None  # it concerns gradients only, and need not be a row of the small table
            return type(module).forward(module, places, *args, **kwargs)
        finally:
            del module.__dict__["weight"]
            module._parameters["weight"], module.padding_idx = table, padding

    def embed_zeros(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Zeros in the shape of embeddings, for passes that only need what comes after the blocks."""
        weight = self.embedding._parameters["weight"]
        return torch.zeros((*ids.shape, weight.shape[1]), dtype=weight.dtype, device=ids.device)

    @staticmethod
    def _forwarded(on_block: OnBlock, index: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: on_block(index, args, kwargs)
