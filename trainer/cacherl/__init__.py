"""Train tool-calling models on cached tool results."""
