"""The client without an event loop: programs run in the calling thread, over blocking sockets."""
