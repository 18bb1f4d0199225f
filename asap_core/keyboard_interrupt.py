"""Which exceptions are the operator's Ctrl-C, and so no failure of the code that raised them."""

from collections.abc import Iterator


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group, however deeply nested; or the exception itself if it isn't a group."""
    # `type()` and the descriptor, not `isinstance()` and the attribute: those would run code of the exception's class.
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), BaseExceptionGroup):
            waiting.extend(BaseExceptionGroup.__dict__["exceptions"].__get__(one))
        else:
            yield one


def is_interrupt(error: BaseException) -> bool:
    """Whether it's a KeyboardInterrupt, or a group that contains one."""
    return any(issubclass(type(leaf), KeyboardInterrupt) for leaf in leaves(error))
