"""The promises of messages in docs/wire-semantics.md, one test each, on the twin and on two real brokers."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from message_rigs import MESSAGES, MESSAGES_IDS, MemoryMessagesRig, MessagesRig
from mosquitto import until

from drivers.hal.errors import CommunicationError
from drivers.wire.messages import Message, Messages, Notice, topic_matches
from drivers.wire.subscriptions import AT_ONCE, minimal_filters
from drivers.wire.waiting import PAYLOAD_BYTES, PER_TOPIC, TOTAL, WaitingMessages


@pytest.fixture(params=MESSAGES, ids=MESSAGES_IDS)
def mq(request: pytest.FixtureRequest) -> MessagesRig:
    rig: MessagesRig = request.param()
    return rig


def test_every_promise_of_messages_has_its_test() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wire-semantics.md").read_text(encoding="utf-8")
    promised = set(re.findall(r"^\| (M\d+) \|", text, flags=re.MULTILINE))
    tested = {m[1].upper() for name in dir(sys.modules[__name__]) if (m := re.match(r"test_(m\d+)_", name))}
    assert promised == tested


async def subscribed(client: Messages) -> None:
    """Everything that the client subscribed to has reached the broker: its own echo comes back."""
    echo: list[Message] = []
    end = client.subscribe(f"rig/echo/{id(client)}", echo.append)
    await client.publish(f"rig/echo/{id(client)}", b"")
    await until(lambda: echo)
    end()


async def both_back(*clients: Messages) -> None:
    """Every client has found the broker again, with its subscriptions."""
    for client in clients:
        await until(lambda client=client: client.connected)  # type: ignore[misc]
        await subscribed(client)


def test_m1_a_message_reaches_every_matching_subscriber_once(mq: MessagesRig) -> None:
    async def main() -> None:
        sender, reader = await mq.client(), await mq.client()
        told: dict[str, list[bytes]] = {pattern: [] for pattern in ("a/b", "a/+", "#", "a/c")}
        for pattern, list_ in told.items():
            reader.subscribe(pattern, lambda message, to=list_: to.append((message.topic, message.payload)))  # type: ignore[misc]
        ends = [reader.subscribe("ended", told["a/c"].append) for _ in range(2)]
        for end in (*ends, *ends):
            end()
        await subscribed(reader)
        for list_ in told.values():
            list_.clear()
        await sender.publish("a/b", b"1")
        await sender.publish("ended", b"1")
        await asyncio.sleep(mq.quiet_s)
        one = ("a/b", b"1")
        assert told == {"a/b": [one], "a/+": [one], "#": [one, ("ended", b"1")], "a/c": []}

    mq.run(main())


def test_m2_messages_on_a_topic_keep_their_order(mq: MessagesRig) -> None:
    async def main() -> None:
        sender, reader = await mq.client(), await mq.client()
        told: list[int] = []
        reader.subscribe("t", lambda message: told.append(int(message.payload)))
        await subscribed(reader)
        for i in range(200):
            if i % 3:
                sender.post("t", b"%d" % i)
            else:
                await sender.publish("t", b"%d" % i)
        await until(lambda: len(told) == 200)
        assert told == list(range(200))

    mq.run(main())


def test_m3_a_retained_message_waits_for_new_subscribers(mq: MessagesRig) -> None:
    async def main() -> None:
        sender, reader = await mq.client(), await mq.client()
        await sender.publish("s/state", b"old", retain=True)
        await sender.publish("s/state", b"now", retain=True)
        await sender.publish("s/gone", b"kept", retain=True)
        await sender.publish("s/gone", b"", retain=True)  # what is empty is kept no longer
        await sender.publish("s/event", b"gone")
        await subscribed(sender)
        told: list[Message] = []
        reader.subscribe("s/#", told.append)
        await until(lambda: told)
        await sender.publish("s/state", b"next", retain=True)
        await until(lambda: len(told) == 2)
        await asyncio.sleep(mq.quiet_s)
        assert [(m.payload, m.retained) for m in told] == [(b"now", True), (b"next", False)]

    mq.run(main())


def test_m4_the_last_will_tells_of_a_loss_and_not_of_a_farewell(mq: MessagesRig) -> None:
    async def main() -> None:
        reader = await mq.client()
        told: list[bytes] = []
        reader.subscribe("will", lambda message: told.append(message.payload))
        await subscribed(reader)
        polite = await mq.client(("will", b"polite"))
        await polite.close()
        await polite.close()
        await mq.kill(await mq.client(Notice("will", b"killed", retain=True)))
        await until(lambda: told)
        await asyncio.sleep(mq.quiet_s)
        assert told == [b"killed"]
        late: list[Message] = []
        (await mq.client()).subscribe("will", late.append)
        await until(lambda: late)
        assert (late[0].payload, late[0].retained) == (b"killed", True)

    mq.run(main())


def test_m5_subscriptions_outlive_the_broker(mq: MessagesRig) -> None:
    async def main() -> None:
        sender, reader = await mq.client(), await mq.client()
        told: list[bytes] = []
        reader.subscribe("t", lambda message: told.append(message.payload))
        await mq.stop()
        assert not sender.connected
        with pytest.raises(CommunicationError, match="no broker"):
            await sender.publish("t", b"lost")
        assert not sender.post("t", b"lost")
        asked_meanwhile: list[bytes] = []
        reader.subscribe("u", lambda message: asked_meanwhile.append(message.payload))
        await mq.start()
        await both_back(sender, reader)
        await sender.publish("t", b"found")
        await sender.publish("u", b"found")
        await until(lambda: told and asked_meanwhile)
        assert told == asked_meanwhile == [b"found"]

    mq.run(main())


def test_m6_what_was_under_way_when_the_broker_went_is_lost(mq: MessagesRig) -> None:
    async def main() -> None:
        sender, reader = await mq.client(), await mq.client()
        told: list[bytes] = []
        reader.subscribe("t", lambda message: told.append(message.payload))
        await subscribed(reader)
        await mq.freeze()  # so that it is under way for sure
        await sender.publish("t", b"under way", retain=True)
        await mq.stop()
        await mq.start()
        await both_back(sender, reader)
        await sender.publish("t", b"after")
        await until(lambda: told)
        await asyncio.sleep(mq.quiet_s)
        assert told == [b"after"]

    mq.run(main())


def test_m7_who_declines_retained_messages_is_told_none(mq: MessagesRig) -> None:
    async def main() -> None:
        sender, reader = await mq.client(), await mq.client()
        await sender.publish("c/move", b"old order", retain=True)
        await subscribed(sender)
        commands: list[bytes] = []
        shown: list[bytes] = []
        reader.subscribe("c/move", lambda message: commands.append(message.payload), retained=False)
        reader.subscribe("c/+", lambda message: shown.append(message.payload))
        await until(lambda: shown)
        await sender.publish("c/move", b"order")
        await until(lambda: commands)
        await asyncio.sleep(mq.quiet_s)
        assert commands == [b"order"]

    mq.run(main())


def test_m8_a_subscription_holds_before_the_same_client_says_more(mq: MessagesRig) -> None:
    async def main() -> None:
        asker, answerer = await mq.client(), await mq.client()
        answerer.subscribe("ask/+", lambda message: (answerer.post(f"answer/{message.topic[4:]}", b"yes"), None)[1])
        await subscribed(answerer)
        told: list[str] = []
        for i in range(20):
            asker.subscribe(f"answer/{i}", lambda message: told.append(message.topic))
            if i % 2:
                asker.post(f"ask/{i}", b"")
            else:
                await asker.publish(f"ask/{i}", b"")
        await until(lambda: len(told) == 20)

    mq.run(main())


def test_m9_the_birth_message_comes_first_at_every_connection(mq: MessagesRig) -> None:
    async def main() -> None:
        reader = await mq.client()
        told: list[bytes] = []
        reader.subscribe("state/x", lambda message: told.append(message.payload))
        await subscribed(reader)
        born = await mq.client(Notice("state/x", b"offline", True), Notice("state/x", b"online", True))
        await born.publish("state/x", b"busy")
        await until(lambda: len(told) == 2)
        assert told == [b"online", b"busy"]
        await mq.stop()
        told.clear()
        await mq.start()
        await both_back(reader, born)
        await until(lambda: told)
        assert set(told) == {b"online"}  # once when the reader was first, and as a retained one when it was not

    mq.run(main())


def test_m10_losses_and_returns_are_told_once(mq: MessagesRig) -> None:
    async def main() -> None:
        client = await mq.client()
        told: list[bool] = []
        answered: list[bytes] = []

        def changed(up: bool) -> None:
            told.append(up)
            if up:
                client.post("mine", b"again")  # subscriptions hold by now

        client.subscribe("mine", lambda message: answered.append(message.payload))
        end = client.watch(changed)
        for _ in range(2):
            await mq.stop()
            await asyncio.sleep(mq.quiet_s)
            await mq.start()
            await until(lambda: client.connected)
            await subscribed(client)
        assert told == [False, True, False, True]
        assert answered == [b"again", b"again"]
        end()
        end()
        await mq.stop()
        assert len(told) == 4

    mq.run(main())


def test_m11_a_flood_grows_nothing_hides_nobody_and_ends_with_the_last_value(mq: MessagesRig) -> None:
    async def main() -> None:
        flooder, reader = await mq.client(), await mq.client()
        flood: list[int] = []
        other: list[bytes] = []
        turns = 0

        def live() -> None:
            """Anything else in the loop, while the flood is handed over."""
            nonlocal turns
            turns += 1
            if len(flood) < PER_TOPIC:
                asyncio.get_running_loop().call_soon(live)

        def take(message: Message) -> None:
            if not flood:
                live()
            flood.append(int(message.payload))

        reader.subscribe("flood", take)
        reader.subscribe("other", lambda message: other.append(message.payload))
        await subscribed(reader)
        sent = 3000
        for i in range(sent):
            assert flooder.post("flood", b"%d" % i)
        assert flooder.dropped == sent - PER_TOPIC
        await flooder.publish("other", b"heard")
        await until(lambda: other and flood and flood[-1] == sent - 1)
        assert flood == list(range(sent - PER_TOPIC, sent))  # the last ones, in order
        assert turns > PER_TOPIC / AT_ONCE / 2
        for i in range(sent):
            reader._subscriptions.arrive(Message("flood", b"%d" % i, 0))  # type: ignore[attr-defined]
        assert len(reader._subscriptions.waiting) == PER_TOPIC  # type: ignore[attr-defined]
        assert reader.dropped == sent - PER_TOPIC

    mq.run(main())


def test_m12_a_hung_broker_is_given_up_and_found_again(mq: MessagesRig) -> None:
    async def main() -> None:
        client = await mq.client()
        told: list[bytes] = []
        client.subscribe("t", lambda message: told.append(message.payload))
        await subscribed(client)
        await asyncio.sleep(mq.quiet_s)  # nothing is asked any more, so no answer is missed
        await mq.freeze()
        await client.publish("t", b"lost without a word")
        await until(lambda: not client.connected, within_s=15.0)
        with pytest.raises(CommunicationError):
            await client.publish("t", b"refused")
        await mq.thaw()
        await until(lambda: client.connected, within_s=15.0)
        told.clear()  # a thawed broker works off what waited
        await client.publish("t", b"back")
        await until(lambda: told)
        assert told[-1] == b"back"

    mq.run(main())


def test_a_listener_that_raises_silences_nobody_else() -> None:
    async def main() -> None:
        mq = MemoryMessagesRig()
        client = await mq.client()
        raised: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))
        told: list[bytes] = []

        def bad(_message: Message) -> None:
            raise ValueError("bad")

        client.subscribe("t", bad)
        client.subscribe("t", lambda message: told.append(message.payload))
        await client.publish("t", b"1")
        await client.publish("t", b"2")
        await asyncio.sleep(0.1)
        assert told == [b"1", b"2"]
        assert len(raised) == 2

    MemoryMessagesRig().run(main())


def message(topic: str, payload: bytes) -> Message:
    return Message(topic, payload, 0)


def test_what_waits_is_bounded_in_number_and_size_and_taken_in_turns() -> None:
    waiting = WaitingMessages(per_topic=3, total=5, total_bytes=100)
    for i in range(5):
        waiting.put(message("a", b"%d" % i))
    waiting.put(message("b", b"x"))
    assert waiting.dropped == 2
    taken = [waiting.take() for _ in range(4)]
    assert [(m.topic, m.payload) for m in taken if m] == [("a", b"2"), ("b", b"x"), ("a", b"3"), ("a", b"4")]
    assert waiting.take() is None and len(waiting) == 0
    for i in range(10):  # ever new topics
        waiting.put(message(f"t{i}", b"v"))
    assert len(waiting) == 5 and waiting.dropped == 7
    waiting.put(message("big", bytes(99)))
    assert len(waiting) == 2  # one byte was left beside it
    waiting.put(message("bigger", bytes(101)))
    assert len(waiting) == 2 and waiting.dropped == 12
    waiting.clear()
    assert waiting.take() is None
    everything = WaitingMessages()
    everything.put(message("huge", bytes(PAYLOAD_BYTES + 1)))
    for i in range(2 * TOTAL):
        everything.put(message(f"t{i % 100}", b"%d" % i))
    assert len(everything) == TOTAL and everything.dropped == TOTAL + 1


def test_filters_that_another_one_covers_are_not_needed() -> None:
    assert minimal_filters(["a/b", "a/+", "a/#", "b", "+/b"]) == ["a/#", "b", "+/b"]
    assert minimal_filters(["a/+", "a/#"]) == ["a/#"]
    assert minimal_filters(["a", "a/b", "+"]) == ["a/b", "+"]
    assert minimal_filters(["#", "x"]) == ["#"]
    assert minimal_filters([]) == []


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("+/+", "a", False),
        ("a", "b", False),
    ],
)
def test_topic_filters_follow_mqtt(pattern: str, topic: str, matches: bool) -> None:
    assert topic_matches(pattern, topic) is matches
