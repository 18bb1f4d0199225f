"""A correct agent that can be broken: each switch breaks it at one decision. The tests' tests.

    python -m asap_core.testing.planted --port 8000 --break replay.accepted

It's written by the wire's documents with the standard library only, and shares nothing with the rest of `asap_core`. So
it's also a second opinion on what an agent does.
"""
