"""`frozen` for the values that are made for each request.

Type checkers see attrs' `frozen`. At run time it's `define`: a field of a frozen class takes three times as long to set
(0.12 µs), and a request makes a dozen of these values. Equality and hash are those of a frozen class.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrs import frozen as frozen  # noqa: PLC0414 - so that other modules may import it from here
else:
    from functools import partial

    from attrs import define

    frozen = partial(define, unsafe_hash=True)
