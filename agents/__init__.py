"""Who acts and who learns: the frozen base model, its LoRA adapters, losses and samplers."""

from .base_model import BaseModel
from .batches import Datum
from .lora import LoraConfig
from .losses import LOSSES, register_loss
from .memory import OutOfMemory
from .optimizer import AdamParams, NonFiniteError
from .policy import LoraPolicy
from .sampling import Completion, SamplingParams
from .scorer import LoraScorer
from .torch_sampler import TorchSampler

__all__ = [
    "LOSSES",
    "AdamParams",
    "BaseModel",
    "Completion",
    "Datum",
    "LoraConfig",
    "LoraPolicy",
    "LoraScorer",
    "NonFiniteError",
    "OutOfMemory",
    "SamplingParams",
    "TorchSampler",
    "register_loss",
]
