"""Calling agents: discovery, sending, the HTTP transport."""
