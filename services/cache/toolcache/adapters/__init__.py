"""The outside world: stores, indexes, embedders, files. One file each heavy library."""
