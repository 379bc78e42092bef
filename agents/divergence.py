"""The Kullback-Leibler divergence of two policies over the whole vocabulary, from their last hidden states.

Suffixes: `X` positions, `H` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from .logprobs import tempered

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .lora import Adapter

Direction = Literal["reverse", "forward"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


def divergence(student_XV: torch.Tensor, teacher_XV: torch.Tensor, direction: Direction) -> torch.Tensor:
    """KL(student, teacher) if `reverse`, KL(teacher, student) if `forward`, of each row of logits: `(X,)` in nats.

    Raises:
        ValueError: the direction is neither.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is one of {DIRECTIONS}, got {direction!r}")
    student, teacher = torch.log_softmax(student_XV, -1), torch.log_softmax(teacher_XV, -1)
    if direction == "forward":
        student, teacher = teacher, student
    return (student.exp() * (student - teacher)).sum(-1)


def chunk_divergence(
    base: BaseModel,
    adapters: tuple[Adapter | None, Adapter | None],
    direction: Direction,
    temperature: float,
    student_XH: torch.Tensor,
    teacher_XH: torch.Tensor,
) -> torch.Tensor:
    """`divergence` of two policies on one base; the teacher, the second of `adapters`, gets no gradient."""
    student_XV = tempered(base.logits(student_XH, adapters[0]), temperature)
    with torch.no_grad():
        teacher_XV = tempered(base.logits(teacher_XH, adapters[1]), temperature)
    return divergence(student_XV, teacher_XV, direction)
