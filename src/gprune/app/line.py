"""The line in which events wait: nobody fills it alone, and nobody waits behind those who are gone."""

from __future__ import annotations

import time
from typing import Any

from gradio.queueing import Event, Queue

MAX_WAITING = 20
"""Events of one session that may wait at once; the page itself sends about ten."""
HEARD_WITHIN = 10.0
"""Seconds for which an event waits for somebody to listen to what becomes of it."""


class WaitingLine(Queue):
    """Gradio's queue, in which an event is begun when its session listens, and forgotten when none does."""

    async def push(self, body: Any, request: Any, username: str | None) -> tuple[bool, Any, Any]:
        """Take an event in: whether it was, its id or else why not, and a word for that."""
        if body.fn_index is not None and body.fn_index not in self.blocks.fns:
            return False, f"There is no event {body.fn_index}; accepted are those of the page; reload it.", "error"
        waiting = self._waiting()
        own = sum(event.session_hash == body.session_hash for event in waiting)
        if own >= MAX_WAITING:
            reason = f"{own} events of this session wait; accepted are {MAX_WAITING}; wait for their answers."
            return False, reason, "queue_full"
        if self.max_size is not None and len(waiting) >= self.max_size:
            absent = [event for event in waiting if not self._is_heard(event)]
            if absent:
                self._forget(min(absent, key=_last_heard))
        return await super().push(body, request, username)

    def get_events(self) -> Any:
        """The next event to begin, if there is one; see `gradio.queueing.Queue`."""
        now = time.monotonic()
        absent: list[Event] = []
        for event in self._waiting():
            if self._is_heard(event):
                event.heard = now
            elif now - _last_heard(event) > HEARD_WITHIN:
                self._forget(event)
            else:
                absent.append(event)
        for line in self.event_queue_per_concurrency_id.values():
            line.queue = [event for event in line.queue if event not in absent]
        events = super().get_events()
        for event in absent:
            self.event_queue_per_concurrency_id[event.concurrency_id].queue.append(event)
        return events

    def _waiting(self) -> list[Event]:
        return [event for line in self.event_queue_per_concurrency_id.values() for event in line.queue]

    def _is_heard(self, event: Event) -> bool:
        """Whether its session takes what it is told: at the least its place in the line."""
        messages = self.pending_messages_per_session.get(event.session_hash)
        return messages is not None and messages.empty()

    def _forget(self, event: Event) -> None:
        self.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
        self.event_ids_to_events.pop(event._id, None)
        left = self.pending_event_ids_session.get(event.session_hash, set())
        left.discard(event._id)
        if not left:
            self.pending_event_ids_session.pop(event.session_hash, None)
            self.pending_messages_per_session.pop(event.session_hash, None)


def _last_heard(event: Event) -> float:
    """When, by the monotonic clock."""
    return getattr(event, "heard", event.enqueue_time)
