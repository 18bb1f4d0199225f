"""The values of the protocol: frozen attrs classes, each field with its rule."""
