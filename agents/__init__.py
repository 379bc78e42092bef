"""Who acts and who learns: the frozen base model, its LoRA adapters, losses and samplers."""

from .base_model import BaseModel
from .lora import LoraConfig
from .losses import LOSSES, register_loss
from .policy import AdamParams, Datum, LoraPolicy, NonFiniteError
from .sampling import Completion, SamplingParams
from .torch_sampler import TorchSampler

__all__ = [
    "LOSSES",
    "AdamParams",
    "BaseModel",
    "Completion",
    "Datum",
    "LoraConfig",
    "LoraPolicy",
    "NonFiniteError",
    "SamplingParams",
    "TorchSampler",
    "register_loss",
]
