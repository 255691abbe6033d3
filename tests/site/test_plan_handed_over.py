"""The plan goes to the interlock daemon of a simulator process: taken, refused with words, taken back; or nobody is there."""

import hashlib
import json
from pathlib import Path

import pytest
from treating import quick_site

from controller.interlock_plan import BY_HAND, entrust_plan, hand_over, take_back
from drivers.hal.errors import CommandRejected, CommunicationError
from drivers.hal.events import EventBus

pytestmark = pytest.mark.xdist_group("wires")
PLAN = Path(__file__).parents[2] / "examples" / "carbon_sphere.dcm"
SHA256 = hashlib.sha256(PLAN.read_bytes()).hexdigest()


def heard():
    bus, events = EventBus(), []
    bus.subscribe(events.append)
    return bus, events


async def test_the_daemon_takes_the_plan_refuses_another_and_gives_it_back(tmp_path):
    site = quick_site(tmp_path / "site")
    try:
        site.ready()
        buttons = Path(site.endpoints.interlock_buttons["G1"])
        bus, events = heard()
        assert await entrust_plan(str(buttons), PLAN, SHA256, "G1", bus) == ""
        assert [(event.kind, event.data["taken"]) for event in events] == [("interlock.plan", True)]
        with pytest.raises(CommandRejected, match="SHA-256"):
            await hand_over(buttons, PLAN, "0" * 64, "G1")
        other = tmp_path / "no plan.dcm"
        other.write_bytes(b"nothing of the kind")
        said = await entrust_plan(str(buttons), other, hashlib.sha256(other.read_bytes()).hexdigest(), "G1", bus)
        assert "does not take the plan" in said
        assert events[-1].data["taken"] is False
        await take_back(buttons, "G1")
        records = [json.loads(line) for line in (site.directory / "G1-interlocks.jsonl").read_text("utf-8").splitlines()]
        plans = [record for record in records if record["kind"] == "plan"]
        assert [bool(record["refused"]) for record in plans] == [False, True, True, False]
        assert plans[0]["sha256"] == SHA256
    finally:
        site.end()


async def test_nobody_at_the_socket_is_said_in_words(tmp_path):
    with pytest.raises(CommunicationError, match="does not answer"):
        await hand_over(tmp_path / "nobody", PLAN, SHA256, "G1")
    bus, _ = heard()
    said = await entrust_plan(str(tmp_path / "nobody"), PLAN, SHA256, "G1", bus)
    assert "--plan FILE" in said
    await take_back(tmp_path / "nobody", "G1")


async def test_where_no_socket_is_named_it_has_to_be_given_by_hand():
    bus, events = heard()
    assert await entrust_plan("", PLAN, SHA256, "R1", bus) == ""
    assert (events[0].source, events[0].data["words"]) == ("R1-interlocks", BY_HAND)
