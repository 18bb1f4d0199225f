"""Serving agents: HTTP connections, ASGI, handlers."""
