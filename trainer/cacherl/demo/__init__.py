"""The demo run: recordings, cache, a tiny model, SFT, GRPO on cached answers, live evaluation, a report."""
