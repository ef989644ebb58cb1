"""What a rollout is worth: answer, process, and how far the tool answers can be trusted."""
