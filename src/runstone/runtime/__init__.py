"""Runs agents: what they are, what they may do, and who runs them."""
