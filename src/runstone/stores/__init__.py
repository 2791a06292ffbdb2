"""Implementations of the store seam, and the migrations they share."""
