"""How little the agent loop waits: for the cache, for its slowest neighbour, for its own work on the event loop."""
