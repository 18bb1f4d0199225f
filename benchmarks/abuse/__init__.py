"""Abuse, with memory measured: what a stranger can send, how much the server grows by it, who's served beside it."""
