"""Where admission is remembered outside this process: `asap_adapters.stores.file` (a state file)."""
