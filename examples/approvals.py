"""An agent that asks before it pays: `runstone serve examples.approvals:app`, then

    $ runstone run refund "order 1042 came broken"
    ? Run pay_back?  cents=3900, order="1042"
        runstone approve apr_…  or --deny  (until 2026-11-21 08:15 UTC)

The run waits, without a slot and without time: press Ctrl-C, stop the server, start it again. Answer from another
terminal, a phone, or a program; whoever follows the run sees it go on at once:

    $ runstone approve                      # what is open
    $ runstone approve apr_… --comment "a good customer"

A refund that the shop does not know asks a question instead, and is answered with a value of the type that it names:

    $ runstone run refund "it never came"
    ? Which order is this about?
        runstone approve apr_… --answer TEXT  (until …)
    $ runstone approve apr_… --answer 1043
"""

from __future__ import annotations

import re

from runstone import ApprovalDenied, Run, Runstone

app = Runstone()

PRICES = {"1042": 3900, "1043": 1250}  # cents, by order


@app.tool(approval="always")
async def pay_back(order: str, cents: int) -> str:
    """Nothing is called, and no action exists, before a person has approved this order and this sum."""
    return f"refund of order {order}: {cents / 100:.2f}"


@app.agent
async def refund(run: Run, complaint: str) -> str:
    """Pays a customer back, if a person agrees."""
    found = re.search(r"\d{4}", complaint)
    order = found[0] if found else await run.ask("Which order is this about?")
    if order not in PRICES:
        return f"There is no order {order}."
    try:
        receipt = await pay_back(order=order, cents=PRICES[order])
    except ApprovalDenied:
        return "We are sorry: this cannot be refunded."
    return f"Done: {receipt}."
