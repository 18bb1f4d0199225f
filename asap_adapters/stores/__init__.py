"""Where admission is remembered outside this process: `file` (a state file), `redis` (Redis or Valkey).

`protocols` says what another store must do.
"""
