"""What goes in comes out, byte for byte."""

from __future__ import annotations

import pytest

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.events import Draft
from runstone.store import Append
from tests.stores.dump import Database
from tests.stores.making import (
    Shop,
    append,
    datas,
    executing,
    fence,
    key,
    new_run,
    query,
    said,
    shown,
    started,
    usage,
)
from tests.stores.promises.base import Promises

MIB = 1 << 20
ODD_TEXTS = {
    "nul": "a\0b",
    "a lone high surrogate": "a\ud800b",
    "a lone low surrogate": "\udc00",
    "a split pair": "\ud83d\ude00",
    "an emoji of four bytes": "🗿" * 3,
    "quotes and controls": '"\\\x01\x1f\x7f\u2028\r\n',
    "one MiB": "x" * MIB,
}


class Content(Promises):
    @pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
    async def test_any_text_comes_back_as_it_went_in(self, shop: Shop, text: str) -> None:
        kept = values.mend(text)
        thread = await shop.thread(title=text[:500], metadata=values.raw({"text": text[:500]}))
        run = await shop.running(thread, input={"text": text[: 600 << 10]}, message=text[: 600 << 10])
        pieces = [kept[start : start + 8000] for start in range(0, len(kept), 8000)]
        offsets = range(0, len(kept), 8000)
        committed = await shop.commit(
            append(run, started("msg_1")),
            append(run, *[said("msg_1", piece, offset=offset) for piece, offset in zip(pieces, offsets, strict=True)]),
            append(run, executing("act_1", tool=text[:100], input=text[:1000])),
            append(run, e.StateChanged(key=text[:100], value=values.raw(text[:1000]))),
        )
        assert committed.outcomes == [None] * 4
        rows = shop.store.rows
        found = await rows.thread("alice", thread.thread_id)
        assert found is not None
        assert found.title == values.mend(text[:500])
        messages = (await rows.messages("alice", query(thread.thread_id))).items
        assert [message.content for message in messages] == [values.mend(text[: 600 << 10]), kept]
        assert (await rows.run("alice", run.run_id)).input == {"text": values.mend(text[: 600 << 10])}  # type: ignore[union-attr]
        await shop.commit(c.cancel_run("alice", run.run_id, text[:1000]))
        await shop.end(run)
        (_, answer) = (await rows.messages("alice", query(thread.thread_id))).items
        assert (answer.content, answer.status) == (kept, "partial")
        assert "".join(data["delta"] for data in datas(await shop.events(thread), "message_delta")) == kept

    @pytest.mark.parametrize("text", ["a\0b", "🗿", "' OR 1=1 --", '"', "\x7f\u2028"])
    async def test_any_text_may_be_a_key(self, shop: Shop, text: str) -> None:
        made = await shop.ask(c.start_run("alice", new_run(key=key(text)), thread_key=key(text)))
        again = await shop.ask(c.start_run("alice", new_run(key=key(text)), thread_key=key(text)))
        assert again.id == made.id

    async def test_bytes_that_a_commit_shows_are_those_that_are_read_later(
        self, shop: Shop, database: Database
    ) -> None:
        thread = await shop.thread(title="näme\0")
        run = await shop.running(thread, message="🗿", metadata={"b": 1, "a": [1.5, None]})
        drafts = [
            Draft(data=started("msg_1"), run_id=run.run_id, attempt=1, metadata=values.raw({"z": 1, "a": "é"})),
            Draft(data=usage(cost=0.1), run_id=run.run_id, attempt=1, raw=values.raw({"any": ["thing", 1e300]})),
            Draft(data=executing("act_1", input={"secret": 1}), run_id=run.run_id, attempt=1, private=True),
            Draft(data=e.StateChanged(key="s", value=values.raw("secret")), run_id=run.run_id, attempt=1, private=True),
        ]
        committed = await shop.commit(
            Append(run.run_id, 1, 1, drafts), c.end_run(run.run_id, c.Cancelled("x"), fence(run), over_its_head=True)
        )
        later = await shop.events(thread)
        shown_now = committed.events[thread]
        assert [event.wire for event in later][-len(shown_now) :] == [event.wire for event in shown_now]
        assert [event.type for event in later][-len(shown_now) :] == [event.type for event in shown_now]
        for event, row in zip(later, database.dump().events, strict=True):
            if not row.private:
                assert event.wire.endswith(row.payload[1:]), "stored payload bytes are spliced in as they are"

    async def test_of_what_is_private_only_ids_are_shown(self, shop: Shop) -> None:
        run = await shop.running()
        draft = Draft(
            data=executing("act_1", tool="vault", input={"secret": 1}),
            run_id=run.run_id,
            attempt=1,
            private=True,
            metadata=values.raw({"secret": 1}),
        )
        committed = await shop.commit(Append(run.run_id, 1, 1, [draft]))
        for event in (committed.events[run.thread][0], (await shop.events(run.thread))[-1]):
            assert shown(event)["data"] == {"action_id": "act_1", "private": True}
            assert b"secret" not in event.wire
            assert b"vault" not in event.wire
        (action,) = (await shop.store.rows.actions("alice", query(run.thread_id))).items
        assert (action.input, action.output) == (None, None)
