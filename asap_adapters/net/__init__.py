"""Requests over the network: names, connections, one transport, and documents fetched once for all who ask."""
