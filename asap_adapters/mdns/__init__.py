"""The local network: announcing and browsing over zeroconf."""
