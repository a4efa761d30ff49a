"""The run-time check of types and shapes: an int is a float, as in PEP 484, and first calls stand for all.

A check costs a tenth of a millisecond, which made loops of small steps, and all tests together, take half as long
again. So within each test a function, or a dataclass's fields, are checked on their first calls alone.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from beartype import BeartypeConf, beartype

FIRST_CALLS = 25  # of each function, in each test

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


class Test:
    """The one that runs, by its number."""

    number = 0


def checked_at_first(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyping.jaxtyped`, for an import hook, with checks of first calls alone."""

    def factory(*, typechecker: Any) -> Callable[[Any], Any]:
        def decorate(made: Any) -> Any:
            if isinstance(made, classmethod | staticmethod):
                return type(made)(decorate(made.__func__))
            if isinstance(made, property):
                parts = (part and decorate(part) for part in (made.fget, made.fset, made.fdel))
                return property(*parts, made.__doc__)
            if not inspect.isclass(made):
                return _at_first(made, jaxtyped(made, typechecker=typechecker))
            plain = made.__dict__.get("__init__")
            made = jaxtyped(made, typechecker=typechecker)
            if plain is not None and made.__init__ is not plain:  # a dataclass
                made.__init__ = _at_first(plain, made.__init__)
            return made

        return decorate

    return factory


def _at_first(plain: Callable[..., Any], strict: Callable[..., Any]) -> Callable[..., Any]:
    seen = [0, 0]  # number of a test, and calls in it

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if torch.compiler.is_compiling():
            return plain(*args, **kwargs)
        if seen[0] != Test.number:
            seen[:] = Test.number, 0
        seen[1] += 1
        return (strict if seen[1] <= FIRST_CALLS else plain)(*args, **kwargs)

    return call
