"""The laws of an ASAP agent as data, and what runs and reports them. Needs no Hypothesis.

`asap conform URL` runs them against a live agent (docs/conformance.md).
"""
