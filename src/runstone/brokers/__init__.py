"""Implementations of the broker seam."""
