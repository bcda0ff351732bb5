"""Operators that torch.compile, torch.export and autograd know, made without importing the compiler.

``torch.library.custom_op`` and ``torch.compiler.assume_constant_result`` import torch._dynamo, at the first call or at
once and whether or not anybody compiles. That took half of the time in which a command starts.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
_LIBRARY = torch.library.Library("kithkin", "FRAGMENT")


def operator(name: str, *, gradient: bool) -> Callable[[Callable[..., Any]], torch._ops.OpOverload[..., Any]]:
    """Register a function of tensors, numbers and text as the operator ``kithkin::name``, which changes none of its
    arguments and returns none of them; the schema is that of its annotations.

    What it is for tensors without numbers is added by ``torch.library.register_fake("kithkin::name")``.

    Args:
        name: of the operator.
        gradient: whether ``torch.library.register_autograd`` adds one; without, asking for it is a RuntimeError.
    """

    def refuse(context: Any, *gradients: Any) -> None:
        raise RuntimeError(f"kithkin::{name} has no gradient: that of the operator is of first order")

    def register(function: Callable[..., Any]) -> torch._ops.OpOverload[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
        _LIBRARY.impl(name, _hidden_from_the_compiler(function), "CompositeExplicitAutograd")
        if not gradient:
            torch.library.register_autograd(f"kithkin::{name}", refuse, lib=_LIBRARY)
        registered: torch._ops.OpOverload[..., Any] = getattr(torch.ops.kithkin, name).default
        return registered

    return register


def _hidden_from_the_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, into which torch.compile does not look where it compiles something around it."""
    hidden: list[Callable[..., Any]] = []

    def run(*arguments: Any, **named: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*arguments, **named)
        if not hidden:
            hidden.append(torch._dynamo.disable(function))
        return hidden[0](*arguments, **named)

    return run


def constant_when_compiled(function: Function) -> Function:
    """Let torch.compile take what a function returns for a constant, since it looks at no tensor: what
    ``torch.compiler.assume_constant_result`` does."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_EXPORTING = ContextVar("exporting", default="")


@contextmanager
def for_export(form: str) -> Iterator[None]:
    """Within, a network is traced for pictures of any size and for runtimes without this package.

    Args:
        form: ``"operators"`` for a trace that holds the operators of this package, which are translated one by one;
            ``"steps"`` for one that holds PyTorch's operators only.
    """
    token = _EXPORTING.set(form)
    try:
        yield
    finally:
        _EXPORTING.reset(token)


@constant_when_compiled
def exporting() -> str:
    """The form of ``for_export`` within which a network is traced, else an empty text."""
    return _EXPORTING.get()


def as_one_operator(kernel: bool) -> bool:
    """Whether a layer runs as one operator of this package: where a kernel takes it, and in a trace of operators."""
    return exporting() == "operators" or (kernel and not exporting())


def ceil_div(number: int, divisor: int) -> int:
    """number / divisor, rounded up. A size that a trace leaves open becomes a symbol of its own, since PyTorch takes
    minutes to reason about sums of quotients."""
    quotient = (number + divisor - 1) // divisor  # of positive numbers, which every runtime rounds down
    if isinstance(quotient, int):
        return quotient
    named: int = torch.scalar_tensor(quotient, dtype=torch.int64).item()
    torch._check(named >= 1)
    return named


def statically_true(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes is sure to hold: False where it depends on a size that a trace leaves open."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
