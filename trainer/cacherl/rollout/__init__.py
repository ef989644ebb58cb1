"""Play a task: render, generate, parse, answer calls; token in, token out."""
