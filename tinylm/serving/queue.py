"""FairQueue: serves its clients in turn, and each client's items in order."""

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """A queue in which a client with many items does not delay the others. `len` counts the items."""

    def __init__(self) -> None:
        self._items: dict[str, deque[Item]] = {}  # by client, in the order of their turns
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, client: str, item: Item) -> None:
        """Appends an item of a client; the turn of a new client comes last."""
        self._items.setdefault(client, deque()).append(item)
        self._size += 1

    def take(self) -> Item:
        """Removes the first item of the client whose turn it is, and ends that turn."""
        client, items = next(iter(self._items.items()))
        item = items[0]
        self.remove(client, item)
        if client in self._items:
            self._items[client] = self._items.pop(client)
        return item

    def remove(self, client: str, item: Item) -> None:
        """Removes an item, if it is in the queue."""
        items = self._items.get(client, ())
        if item not in items:
            return
        self._items[client].remove(item)
        self._size -= 1
        if not self._items[client]:
            del self._items[client]

    def clear(self) -> list[Item]:
        """Removes and returns all items."""
        items = [item for each in self._items.values() for item in each]
        self._items, self._size = {}, 0
        return items
