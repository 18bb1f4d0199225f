"""Calling agents: finding them and sending to them."""
