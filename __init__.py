"""loragym: a Gymnasium for language models, with the trainer included.

Importing the package registers its environments with Gymnasium and imports no torch.
"""

from . import envs

__all__ = ["envs"]
__version__ = "0.1.0"
