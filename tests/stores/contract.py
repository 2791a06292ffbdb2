"""What every store keeps to: the docstring of `runstone.store.Store`, as tests.

An implementation joins with a subclass that says how its database is made:

    class TestSqlite(StoreContract):
        @pytest.fixture
        def database(self, tmp_path):
            return SqliteDatabase(tmp_path)
"""

from __future__ import annotations

from tests.stores.promises.approvals import Approvals
from tests.stores.promises.claims import Claims
from tests.stores.promises.commands import Commands
from tests.stores.promises.content import Content
from tests.stores.promises.entries import Entries
from tests.stores.promises.feed import Feeds
from tests.stores.promises.life import Life
from tests.stores.promises.lists import Lists
from tests.stores.promises.order import Order
from tests.stores.promises.owners import Owners
from tests.stores.promises.pages import Pages
from tests.stores.promises.workers import Workers


class StoreContract(Order, Entries, Commands, Claims, Workers, Approvals, Pages, Lists, Feeds, Owners, Content, Life):
    """All promises of a store."""
