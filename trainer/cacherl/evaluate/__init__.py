"""Play held-out tasks live, with the cache off, and say how sure the numbers are."""
