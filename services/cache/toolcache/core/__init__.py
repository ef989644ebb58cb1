"""What the cache decides: pure values in, values out. No I/O, no clock, no framework (import contracts hold it)."""
