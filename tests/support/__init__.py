"""Helpers of the tests: real servers, agents to run on them."""
