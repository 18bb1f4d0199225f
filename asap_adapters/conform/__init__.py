"""Runs the laws of `asap_core.testing.laws` against a live agent."""
