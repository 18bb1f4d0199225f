"""Which exceptions of a user's code are the operator's Ctrl-C, and so nobody's failure."""

from collections.abc import Iterator


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that an exception stands for: itself, or those in the group, however deeply nested."""
    # `type()` and the descriptor, not `isinstance()` and the attribute: those would run code of the exception's class.
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), BaseExceptionGroup):
            waiting.extend(BaseExceptionGroup.__dict__["exceptions"].__get__(one))
        else:
            yield one


def is_interrupt(error: BaseException) -> bool:
    """Whether it is a KeyboardInterrupt, alone or within a group."""
    return any(issubclass(type(leaf), KeyboardInterrupt) for leaf in leaves(error))
