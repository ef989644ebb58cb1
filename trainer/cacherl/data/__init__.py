"""Recorded trajectories and the training examples made from them."""
