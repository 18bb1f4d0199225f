"""Credentials carried out: verifying tokens, getting them, keys."""
