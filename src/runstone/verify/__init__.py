"""Checks every promise that a store can show, and says where one is broken."""

from runstone.verify.checks import Checked, Progress, verify
from runstone.verify.findings import Check, Finding

__all__ = ["Check", "Checked", "Finding", "Progress", "verify"]
