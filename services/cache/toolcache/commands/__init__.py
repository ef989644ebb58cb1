"""What the `toolcache` program does, one file a command. All speak the HTTP contract, also to a local file."""
