"""What waits between a broker and its reader: bounded, in order on each topic, fair between topics.

A flood must neither grow memory nor hide what others say, and the last value of a topic is worth more than the ones before it.
So the oldest are dropped and counted, and the topics take turns. No I/O, no time; not responsible for who reads.
"""

from __future__ import annotations

from collections import deque

from drivers.wire.messages import Message

# Assumed: a second of a busy room, and no more than a few megabytes of a malicious one.
PER_TOPIC = 256
TOTAL = 4096
TOTAL_BYTES = 8 << 20
PAYLOAD_BYTES = 1 << 20


class WaitingMessages:
    """Messages that wait, by topic.

    Args:
        per_topic: most messages of one topic.
        total: most messages of all topics.
        total_bytes: most bytes of all payloads; one payload may have at most a megabyte.

    Attributes:
        dropped: messages thrown away because too many waited.
    """

    def __init__(self, per_topic: int = PER_TOPIC, total: int = TOTAL, total_bytes: int = TOTAL_BYTES) -> None:
        self.dropped = 0
        self._per_topic = per_topic
        self._total = total
        self._total_bytes = total_bytes
        self._topics: dict[str, deque[Message]] = {}  # in the order in which they take turns
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    def put(self, message: Message) -> None:
        """Let a message wait; the oldest of its topic, or of the topic whose turn it is, goes when there is no room."""
        size = len(message.payload)
        if size > min(PAYLOAD_BYTES, self._total_bytes):
            self.dropped += 1
            return
        waiting = self._topics.get(message.topic)
        if waiting is not None and len(waiting) >= self._per_topic:
            self._drop(message.topic)
        while self._count >= self._total or self._bytes + size > self._total_bytes:
            self._drop(message.topic if self._topics.get(message.topic) else next(iter(self._topics)))
        self._topics.setdefault(message.topic, deque()).append(message)
        self._count += 1
        self._bytes += size

    def take(self) -> Message | None:
        """The next message; None when nothing waits."""
        if not self._topics:
            return None
        topic = next(iter(self._topics))
        waiting = self._topics.pop(topic)
        message = waiting.popleft()
        if waiting:
            self._topics[topic] = waiting  # behind the others
        self._count -= 1
        self._bytes -= len(message.payload)
        return message

    def clear(self) -> None:
        """Nothing waits any more; what waited does not count as dropped."""
        self._topics.clear()
        self._count = self._bytes = 0

    def _drop(self, topic: str) -> None:
        waiting = self._topics[topic]
        self._bytes -= len(waiting.popleft().payload)
        self._count -= 1
        self.dropped += 1
        if not waiting:
            del self._topics[topic]
