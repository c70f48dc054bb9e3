"""The quantization method "bitbudget" of transformers: its config class and its quantizer.

`AutoModelForCausalLM.from_pretrained` finds both by `quant_method` of config.json, once `register` has run. This module
is imported while transformers itself is still being imported (`on_import.py`), so nothing here may ask for its models
at the top.
"""

from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitbudget.checkpoint.native import FORMAT_VERSION, QUANT_METHOD, NativeConfig
from bitbudget.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitbudget.integrations.placement import Placement


class BitbudgetConfig(QuantizationConfigMixin):
    """`quantization_config` of a native checkpoint, with exactly the keys of the file as attributes.

    Raises InputError for a newer format, an unknown choice and a damaged map: the values come from a file, of any type.
    """

    def __init__(
        self,
        choices: Any = None,
        layers: Any = None,
        format_version: Any = FORMAT_VERSION,
        quant_method: Any = QUANT_METHOD,
        **others: Any,  # keys that this version gives no meaning
    ) -> None:
        self.quant_method = quant_method
        self.format_version = format_version
        self.choices = choices
        self.layers = layers
        self.native()

    def native(self) -> NativeConfig:
        """The choice of every layer."""
        return NativeConfig.from_dict(self.to_dict())


class BitbudgetQuantizer(HfQuantizer):
    """Puts modules for stored weights into a model before transformers fills it. It does not quantize by itself."""

    requires_calibration = True  # so transformers refuses it for a model that is not quantized yet
    quantization_config: BitbudgetConfig
    placement: "Placement | None" = None

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: list[str] | None = None, **others: Any
    ) -> None:
        from bitbudget.integrations.placement import place

        self.placement = place(model, self.quantization_config.native(), checkpoint_files)

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **others: Any) -> "PreTrainedModel":
        if self.placement is not None:
            from bitbudget.kernels import use_kernels

            self.placement.finish(model)
            use_kernels(model)
        return model

    def get_weight_conversions(self) -> list[Any]:
        """Renamings for stored tensors that transformers' own do not bring to their module."""
        from transformers.core_model_loading import WeightRenaming

        renamings = self.placement.renamings if self.placement else {}
        return [WeightRenaming(source, target) for source, target in renamings.items()]

    def get_state_dict_and_metadata(self, model: "PreTrainedModel") -> tuple[None, dict[str, str]]:
        """The model's own tensors are saved as they are; the config follows the names that they get in the file.

        transformers saves under the model's names (with the base model's prefix, say), not under those it has read.
        """
        if self.placement is not None:
            renamed = self.placement.names_when_saved(model)
            layers = self.quantization_config.layers.items()
            self.quantization_config.layers = {renamed.get(name, name): index for name, index in layers}
            self.placement = self.placement.with_names(renamed)
        return None, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Make transformers know the method. Calling it again changes nothing.

    Raises InputError if something else has taken the name.
    """
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(BitbudgetConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(BitbudgetQuantizer)
    if not is_registered():
        raise InputError(
            f"In transformers the quantization method {QUANT_METHOD!r} is taken by "
            f"{AUTO_QUANTIZER_MAPPING[QUANT_METHOD]!r}, so bitbudget's checkpoints cannot be loaded in this process. "
            "Remove the package that registers that name."
        )


def is_registered() -> bool:
    """Whether transformers would use the classes of this module."""
    return (
        AUTO_QUANTIZATION_CONFIG_MAPPING.get(QUANT_METHOD) is BitbudgetConfig
        and AUTO_QUANTIZER_MAPPING.get(QUANT_METHOD) is BitbudgetQuantizer
    )
