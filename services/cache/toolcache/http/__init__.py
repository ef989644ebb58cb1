"""HTTP: routes, problems, and the translation between messages and the core. Decides nothing."""
