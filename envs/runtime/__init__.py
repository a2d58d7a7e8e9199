"""Where environments run: one killable process per episode, shards of them, and the pool. Imports nothing."""
