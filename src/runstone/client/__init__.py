"""The Python client: starts runs, follows them through every cut of the network, and reads what is kept."""

from runstone.client.answers import Listed
from runstone.client.asgi import AsgiTransport
from runstone.client.client import Client, EventPage, Health
from runstone.client.feed import FeedItem, FeedStream
from runstone.client.reducer import ThreadView
from runstone.client.rules import Retrying
from runstone.client.runs import RunHandle
from runstone.client.stream import Event, EventStream

__all__ = [
    "AsgiTransport",
    "Client",
    "Event",
    "EventPage",
    "EventStream",
    "FeedItem",
    "FeedStream",
    "Health",
    "Listed",
    "Retrying",
    "RunHandle",
    "ThreadView",
]
