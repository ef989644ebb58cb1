"""Small worlds of our own: tools that run, tasks whose truth is known, agents that record."""
