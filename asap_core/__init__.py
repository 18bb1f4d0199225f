"""The public face of the core: what users import. Everything else may move."""
