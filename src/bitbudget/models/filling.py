"""Fills parts of a skeleton with weights and empties them again."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitbudget.errors import InputError
from bitbudget.models.names import ParameterMap, Recipe
from bitbudget.models.weights import Weights


class Filler:
    """Holds a skeleton and loads named parameters into it, on one device, in the dtypes of the skeleton."""

    def __init__(
        self, model: PreTrainedModel, parameters: ParameterMap, weights: Weights, device: torch.device
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.weights = weights
        self.device = device
        self._empty: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer.to(device) if buffer is not None and not buffer.is_meta else buffer

    def names_in(self, path: str, recurse: bool = True) -> list[str]:
        """Parameters and stored buffers of a module by their full names."""
        module = self.model.get_submodule(path)
        own = [name for name, _ in module.named_parameters(recurse=recurse, remove_duplicate=False)]
        own += [name for name, _ in module.named_buffers(recurse=recurse, remove_duplicate=False)]
        full = [f"{path}.{name}" if path else name for name in own]
        return [name for name in full if self.parameters.recipe(name) is not None]

    def fill(self, names: Iterable[str]) -> None:
        """Loads these parameters. Raises InputError if a tensor cannot be read or has the wrong shape."""
        ready: dict[str, Tensor] = {}
        for name in names:
            source = self.parameters.alias.get(name, name)
            if source not in ready:
                ready |= self._made(self.parameters.recipes[source])
            self._put(name, ready[source])

    def empty(self, names: Iterable[str]) -> None:
        """Gives the memory of these parameters back; stored buffers stay, they are small."""
        for name in names:
            if name in self._empty:
                module_path, _, leaf = name.rpartition(".")
                self.model.get_submodule(module_path)._parameters[leaf] = self._empty[name]

    @contextmanager
    def filled(self, path: str) -> Iterator[nn.Module]:
        """The module at `path` with its weights, for as long as the context lasts."""
        names = self.names_in(path)
        try:
            self.fill(names)
            yield self.model.get_submodule(path)
        finally:
            self.empty(names)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Rows of a table; of a table that transformers converts while loading, after loading it whole."""
        tensor = self.parameters.file_tensor(name)
        if tensor is None:
            made = self._made(self.parameters.recipes[self.parameters.alias.get(name, name)])
            return made[self.parameters.alias.get(name, name)][ids.to(self.device)]
        return self.weights.rows(tensor, ids).to(self.device, self._empty[name].dtype)

    def _made(self, recipe: Recipe) -> dict[str, Tensor]:
        dtype = self.model.get_parameter_or_buffer(recipe.first_target).dtype
        tensors = [self.weights.tensor(name, dtype).to(self.device) for name, _ in recipe.files]
        return recipe.make(tensors, self.model)

    def _put(self, name: str, tensor: Tensor) -> None:
        module_path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(module_path)
        expected = (module._buffers if leaf in module._buffers else module._parameters)[leaf]
        if tensor.shape != expected.shape:
            raise InputError(
                f"The weights of {name!r} have the shape {tuple(tensor.shape)}, but the model needs "
                f"{tuple(expected.shape)}."
            )
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


class StemFiller:
    """Loads what lies outside the decoder blocks when the model's own forward first calls it.

    What is never called (a vision tower, the head while block arguments are recorded) is never read.
    """

    def __init__(self, filler: Filler, blocks: str, embedding: str) -> None:
        self._filler = filler
        self._loaded: set[str] = set()
        for path, module in filler.model.named_modules():
            inside = path == blocks or path.startswith(f"{blocks}.")
            names = [] if inside or path == embedding else filler.names_in(path, recurse=False)
            if names:
                module.register_forward_pre_hook(self._loading(names))

    def empty(self) -> None:
        """Gives everything loaded back."""
        self._filler.empty(self._loaded)
        self._loaded.clear()

    def _loading(self, names: list[str]) -> Callable[[nn.Module, object], None]:
        def load(module: nn.Module, args: object) -> None:
            if names[0] not in self._loaded:
                self._filler.fill(names)
                self._loaded.update(names)

        return load
