"""HTTP requests: name resolution, connections, the transport, and cached documents."""
