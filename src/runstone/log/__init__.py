"""The log: the only writer and the only reader of events.

append = gather what everybody has to say, commit it together, then hint. tail = read, wait for a hint, read.
Nothing leaves this package that is not committed.
"""

from runstone.log.feed import FeedTail
from runstone.log.log import POLL_S, Log
from runstone.log.outbox import Outbox
from runstone.log.tail import Tail

__all__ = ["POLL_S", "FeedTail", "Log", "Outbox", "Tail"]
