"""The agent `report`: look through a folder, tell what is found while looking, and leave it in `report.md`.

It needs no model and no key. What it says comes from what its tools return, so the same folder gives the
same report: nothing in it depends on the time of day, on chance, or on how long a step took. A later attempt
at the same run therefore makes the same calls.
"""

from runstone.agents.report.agent import register

__all__ = ["register"]
