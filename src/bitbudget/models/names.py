"""Which tensors of the files become which parameters of the model, exactly as transformers maps them.

Files may lack the base model's prefix, use older names, or store what the model class merges (experts one by one).
transformers renames and converts while it loads; the same functions are asked here, with shapes only.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from bitbudget.errors import InputError

SHOWN = 8  # names listed in a message before "and n more"


@dataclass(frozen=True)
class Recipe:
    """How one or more parameters of the model are made: `files` (tensor, converter's pattern) in loading order."""

    first_target: str
    files: list[tuple[str, str]]
    converter: WeightConverter | None  # None: the one file tensor is the parameter

    def make(self, tensors: Iterable[Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
        """The parameters by name, from the tensors of `files` in the same order."""
        if self.converter is None:
            return {self.first_target: next(iter(tensors))}
        converter = deepcopy(self.converter)
        for (name, pattern), tensor in zip(self.files, tensors, strict=True):
            converter.add_tensor(self.first_target, name, pattern, tensor)
        made = converter.convert(self.first_target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class ParameterMap:
    """Every parameter of the model and what it is made from; names left of `alias` take the value of the right one."""

    recipes: dict[str, Recipe]  # by parameter (or persistent buffer) name
    alias: dict[str, str]  # parameter -> parameter that the file gives
    duplicates: dict[str, str]  # file tensor -> equal file tensor that is used instead
    unused: tuple[str, ...]  # file tensors that the model class does not know
    recipe_of: dict[str, Recipe]  # by file tensor, without duplicates and unused ones

    def recipe(self, parameter: str) -> Recipe | None:
        """The recipe of a parameter, through ties; None for a buffer that is not in the files."""
        return self.recipes.get(self.alias.get(parameter, parameter))

    def file_tensor(self, parameter: str) -> str | None:
        """The one file tensor that is this parameter as it stands; None if there is none or it is converted."""
        recipe = self.recipe(parameter)
        return recipe.files[0][0] if recipe and recipe.converter is None else None


def map_parameters(
    model: PreTrainedModel,
    shapes: Mapping[str, tuple[int, ...] | None],
    equal: Callable[[str, str], bool],
) -> ParameterMap:
    """The map for a skeleton and the shapes of the file's tensors; `equal` compares two tensors of the files.

    A shape of None is taken on trust: it is whatever the model has there.
    Raises InputError for parameters that the files do not give and for shapes that do not fit.
    """
    recipes, unused = _recipes(model, shapes)
    by_target: dict[str, Recipe] = {}
    for recipe in recipes:
        made = _made_on_meta(recipe, [shapes[name] for name, _ in recipe.files], model)
        _check_shapes(model, recipe, made)
        by_target.update(dict.fromkeys(made, recipe))
    alias, duplicates = _ties(model, by_target, equal)
    _check_complete(model, by_target, alias)
    recipe_of = {name: recipe for recipe in recipes for name, _ in recipe.files if name not in duplicates}
    return ParameterMap(by_target, alias, duplicates, tuple(unused), recipe_of)


class Renamer:
    """Where transformers puts a tensor of the files in a model, as the model's modules are now."""

    def __init__(self, model: PreTrainedModel) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix
        self.state = model.state_dict()
        self.converter_of = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}

    def target(self, name: str) -> tuple[str, str | None]:
        """The parameter (in `state`, if the model has it) and the pattern of the converter that makes it, if any."""
        target, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self.state)
        if target not in self.state and name in self.state:
            return rename_source_key(name, [], [], self._prefix, self.state)
        return target, pattern

    def renamed(self, name: str) -> str:
        """The name after renaming, before the base model's prefix is added or taken away."""
        return rename_source_key(name, self._renamings, self._converters)[0]


def _recipes(model: PreTrainedModel, names: Iterable[str]) -> tuple[list[Recipe], list[str]]:
    renamer = Renamer(model)
    recipes: dict[str, Recipe] = {}
    unused = []
    # transformers' order: the order of names decides the order of merged experts.
    for name in sorted(names, key=dot_natural_key):
        target, pattern = renamer.target(name)
        known = recipes.get(target)
        if target not in renamer.state or (known is not None and known.converter is None):
            unused.append(name)
            continue
        converter = deepcopy(renamer.converter_of[pattern]) if pattern is not None else None
        recipe = recipes.setdefault(target, Recipe(target, [], converter))
        recipe.files.append((name, pattern or name))
    return list(recipes.values()), unused


def _made_on_meta(recipe: Recipe, shapes: list[tuple[int, ...] | None], model: PreTrainedModel) -> dict[str, Tensor]:
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return {recipe.first_target: model.get_parameter_or_buffer(recipe.first_target)}
    try:
        return recipe.make([torch.empty(shape, device="meta") for shape in known], model)
    # Conversions raise what torch raises; the reason is told whatever its type.
    except Exception as error:
        names = _listed([name for name, _ in recipe.files])
        raise InputError(
            f"The tensors {names} cannot be put together as the model's {recipe.first_target!r} ({error}). "
            "Tensors are missing from the checkpoint, or it belongs to another config.json."
        ) from error


def _check_shapes(model: PreTrainedModel, recipe: Recipe, made: Mapping[str, Tensor]) -> None:
    for target, tensor in made.items():
        expected = model.get_parameter_or_buffer(target).shape
        if tensor.shape != expected:
            raise InputError(
                f"The tensor {recipe.files[0][0]!r} gives {target!r} the shape {tuple(tensor.shape)}, but the model of "
                f"config.json needs {tuple(expected)}. Config and weights do not belong together."
            )


def _ties(
    model: PreTrainedModel, recipes: Mapping[str, Recipe], equal: Callable[[str, str], bool]
) -> tuple[dict[str, str], dict[str, str]]:
    """Parameters that are one object in the model: who gives the value, and which file tensors repeat it."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    alias, duplicates = {}, {}
    for names in groups.values():
        given = [name for name in names if name in recipes]
        if len(names) < 2 or not given:
            continue
        first = recipes[given[0]].files[0][0]
        for name in names:
            if name not in recipes:
                alias[name] = given[0]
            elif name != given[0] and equal(first, recipes[name].files[0][0]):
                # Stored twice with the same values: tied. With different values transformers leaves them apart.
                alias[name] = given[0]
                duplicates[recipes[name].files[0][0]] = first
    return alias, duplicates


def _check_complete(model: PreTrainedModel, recipes: Mapping[str, Recipe], alias: Mapping[str, str]) -> None:
    needed = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    missing = [name for name in needed if name not in recipes and name not in alias]
    if missing:
        raise InputError(
            f"The checkpoint lacks {len(missing)} of the {len(needed)} parameters that the model of config.json needs: "
            f"{_listed(missing)}. A shard is missing, or config and weights do not belong together."
        )
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in recipes]
    if empty:
        raise InputError(f"The model class {type(model).__name__} leaves the buffers {_listed(empty)} uncomputed.")


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
