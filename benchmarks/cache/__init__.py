"""How fast the cache service is: `make bench`. Ratios in one run, CPU time rather than wall time."""
