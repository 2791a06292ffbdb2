"""A supervisor and those it calls, over the files of a small shop in `data/`: no key, no network.

    $ runstone serve examples.supervisor.app:app
    $ runstone run supervisor "What went wrong with our deliveries in October, and who complained?"

`triage` reads the request and decides what has to be found out. `orders` is asked first, since the others need its
order numbers; then `complaints` and `parcels` side by side; then `report` writes it all down, a section a step.

Now kill it in the middle, and start it again in another terminal:

    $ kill -9 $(pgrep -f "serve examples.supervisor")
    $ runstone serve examples.supervisor.app:app

The client that follows comes back by itself, and the same run goes on where it was: whoever had ended is not called
again, whoever was under way is called as a second attempt, files that were read are not read again, and the sections
of the report that were written stand as they are. Kill it as often as you like: the report is the same.

SUPERVISOR_PAUSE_S (0.4) is how long everybody pretends to think, so that there is time to do so.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from runstone import Run, Runstone

app = Runstone()

DATA = Path(__file__).parent / "data"
PAUSE_S = float(os.environ.get("SUPERVISOR_PAUSE_S", "0.4"))
MONTHS = {"september": "2026-09", "october": "2026-10", "november": "2026-11"}
Topic = Literal["complaints", "parcels"]

TOPICS: dict[Topic, str] = {
    "complaints": r"complain|wrong|broken|unhappy|angry",
    "parcels": r"deliver|parcel|late|lost|ship|carrier",
}


class Plan(BaseModel):
    """What has to be found out, and about which months."""

    months: list[str]
    topics: list[Topic]


class Findings(BaseModel):
    """What one of the data agents has found: lines for the report."""

    about: str
    lines: list[str]


class Orders(Findings):
    numbers: list[int]


# --- tools, each of which reads a file: they change nothing, so a call that a kill interrupted is made again ---------


@app.tool(idempotent=True)
def read_orders(month: str) -> list[dict[str, str]]:
    """The orders of a month, as "2026-10"."""
    with (DATA / "orders.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["day"].startswith(month)]


@app.tool(idempotent=True)
def read_complaints(orders: list[int]) -> list[dict[str, str | int]]:
    found = json.loads((DATA / "complaints.json").read_text())
    return [complaint for complaint in found if complaint["order"] in orders]


@app.tool(idempotent=True)
def read_parcels(orders: list[int]) -> list[dict[str, str]]:
    with (DATA / "parcels.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["order"]) in orders]


# --- agents ------------------------------------------------------------------------------------------


@app.agent(max_attempts=100)  # so often its process may die under it; 3 is the default
async def supervisor(run: Run, request: str) -> dict[str, object]:
    """Answers a request about the shop with a report."""
    await run.think("First: what is to be found out?")
    plan: Plan = await run.call("triage", request)
    found: Orders = await run.call("orders", {"months": plan.months})
    others: list[Findings] = await asyncio.gather(
        *[run.call(topic, {"orders": found.numbers}) for topic in plan.topics]
    )
    sections = [Findings(about=found.about, lines=found.lines), *others]
    text: str = await run.call("report", {"request": request, "sections": sections})
    return {"plan": plan.model_dump(), "report": text}


@app.agent
async def triage(run: Run, request: str) -> Plan:
    """Decides by rules what a request is about; where it names nothing, everything is meant."""
    await asyncio.sleep(PAUSE_S)
    said = request.lower()
    plan = Plan(
        months=[month for name, month in MONTHS.items() if name in said] or list(MONTHS.values()),
        topics=[topic for topic, words in TOPICS.items() if re.search(words, said)] or list(TOPICS),
    )
    await run.say(f"This is about {', '.join(plan.topics)} in {', '.join(plan.months)}.\n")
    return plan


@app.agent
async def orders(run: Run, months: list[str]) -> Orders:
    """Finds the orders of these months."""
    rows = []
    for month in months:
        await asyncio.sleep(PAUSE_S)
        rows += await read_orders(month)
    cents = sum(int(row["cents"]) for row in rows)
    items = Counter(row["item"] for row in rows).most_common(1)
    lines = [f"{len(rows)} orders, together {cents / 100:.2f}.", *[f"Most wanted: {item} ({n})." for item, n in items]]
    return Orders(about="Orders", lines=lines, numbers=[int(row["order"]) for row in rows])


@app.agent
async def complaints(run: Run, orders: list[int]) -> Findings:
    """Finds who complained about these orders, and why."""
    found = await read_complaints(orders)
    await asyncio.sleep(PAUSE_S)
    lines = [f"{c['customer']} (order {c['order']}, {c['about']}): {c['text']}" for c in found]
    return Findings(about="Complaints", lines=lines or ["Nobody complained."])


@app.agent
async def parcels(run: Run, orders: list[int]) -> Findings:
    """Finds which parcels of these orders were late or lost."""
    found = await read_parcels(orders)
    await asyncio.sleep(PAUSE_S)
    late = [p for p in found if p["state"] == "lost" or int(p["days"]) > 5]
    lines = [f"Order {p['order']} with {p['carrier']}: {p['state']} after {p['days']} days." for p in late]
    return Findings(about="Parcels", lines=[f"{len(late)} of {len(found)} were late or lost.", *lines])


@app.agent
async def report(run: Run, request: str, sections: list[Findings]) -> str:
    """Writes the report. What is said in a recorded step stands, whatever happens later."""
    written = [await run.step("title", write, run, f"# {request}\n")]
    for section in sections:
        text = "\n".join([f"\n## {section.about}\n", *[f"- {line}" for line in section.lines], ""])
        written.append(await run.step(f"section {section.about}", write, run, text))
    return "".join(written)


async def write(run: Run, text: str) -> str:
    """Stands for a language model: words, one after another."""
    async with run.message() as message:
        for word in re.findall(r"\S+\s*|\s+", text):
            await message.write(word)
            await asyncio.sleep(PAUSE_S / 20)
    return message.text
