"""A limit on the memory of all recordings of the page, shared by everybody who uses it."""

from collections import OrderedDict
from collections.abc import Hashable

from sgm.errors import UserError
from sgm.inference.session import EditSession
from sgm.inference.stores import Store
from sgm.inference.track import PROMPT
from sgm.sparse.recording import Recording


class Metered(Store):
    """A store that knows how many bytes it holds.

    Args:
        store: what keeps the recordings.
    """

    def __init__(self, store: Store) -> None:
        self.place = store.place
        self._store = store
        self._sizes: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(self._sizes.values())

    def put(self, name: str, recording: Recording) -> None:
        """Keep a recording under a name, and count its bytes."""
        self._store.put(name, recording)
        self._sizes[name] = recording.size_in_bytes()

    def names(self) -> set[str]:
        """The names of what is kept."""
        return self._store.names()

    def forget(self, name: str) -> None:
        """Drop the recording of a name."""
        self._store.forget(name)
        del self._sizes[name]

    def get(self, name: str) -> Recording:
        """The recording that is kept under a name."""
        return self._store.get(name)


class Budget:
    """The sessions whose recordings are in memory, by whose they are. Those that were not used for
    the longest time make room for others, and are made anew when they are needed.

    Args:
        limit: bytes of all recordings together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._sessions = OrderedDict[Hashable, EditSession]()  # the last used is the last

    @property
    def size(self) -> int:
        """Bytes of all recordings."""
        return sum(map(_size_of, self._sessions.values()))

    def owners(self) -> list[Hashable]:
        """The owners of sessions in memory, the most recently used last."""
        return list(self._sessions)

    def get(self, owner: Hashable) -> EditSession | None:
        """The session of an owner, marked as just used; None if there is none (any more)."""
        session = self._sessions.get(owner)
        if session is not None:
            self._sessions.move_to_end(owner)
        return session

    def put(self, owner: Hashable, session: EditSession) -> None:
        """Keep a session; one of the same owner is replaced."""
        self._sessions[owner] = session
        self._sessions.move_to_end(owner)
        self.settle(owner)

    def drop(self, owner: Hashable) -> None:
        """Drop the session of an owner."""
        self._sessions.pop(owner, None)

    def make_room(self, needed: int) -> None:
        """Drop what was not used for the longest time until so many bytes are free.

        Raises:
            UserError: that is more than there is for all.
        """
        if needed > self.limit:
            raise UserError(
                f"The recordings of this picture take {needed / 1e9:.2f} GB and there are "
                f"{self.limit / 1e9:.2f} GB for them; open a smaller picture, take fewer steps, or "
                "start the page with more --memory."
            )
        while self.size + needed > self.limit:
            self._sessions.popitem(last=False)

    def settle(self, owner: Hashable) -> None:
        """Bring the sum below the limit after a session has grown. Dropped first are sessions of
        other owners, then what prompts changed in this one, then all of it."""
        while self.size > self.limit and next(iter(self._sessions)) != owner:
            self._sessions.popitem(last=False)
        session = self._sessions.get(owner)
        if session is not None and self.size > self.limit:
            store = session.recordings.store
            for name in [name for name in store.names() if name.startswith(PROMPT)]:
                store.forget(name)
            if self.size > self.limit:
                self.drop(owner)


def _size_of(session: EditSession) -> int:
    store = session.recordings.store
    assert isinstance(store, Metered)
    return store.size
