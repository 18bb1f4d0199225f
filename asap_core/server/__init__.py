"""The server's decisions: one Exchange per request, from the first byte to the last."""
