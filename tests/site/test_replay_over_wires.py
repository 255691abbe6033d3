"""A treatment over pty, TCP, Channel Access and MQTT is recorded, and replayed without any of them: the same commands again; a
changed command is named."""

from __future__ import annotations

import json

import pytest
from treating import command, quick_site, sphere

from controller.replay import run_replay
from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.devices.room_access import RoomAccessIO
from drivers.wire.tap.format import read_recording

pytestmark = [pytest.mark.xdist_group("wires"), pytest.mark.timeout(1200), pytest.mark.slow]


def test_real_wires_are_recorded_and_replayed(tmp_path, monkeypatch):
    plan, file = sphere(tmp_path / "plan.dcm", 15), tmp_path / "run.jsonl.gz"
    site = quick_site(tmp_path / "site")
    try:
        site.ready()
        done = command("treat", plan, "--endpoints", site.file, "--output", tmp_path / "out", "--record", file)
    finally:
        site.end()
    assert done.returncode == 0, done.stdout + done.stderr
    recording = read_recording(file)
    assert recording.header["clock"] == "wall"
    assert {entry.wire for entry in recording.entries} == {"G1-motion", "G1-safety", "epics", "mqtt", "operator"}

    replayed = command("replay", file, "--json")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    report = json.loads(replayed.stdout)
    assert report["status"] == report["recorded_status"] == "complete"
    assert report["matched"]["put"] == sum(entry.kind == "put" for entry in recording.entries)
    assert report["matched"]["ask"] == 3

    preset, submit = RoomAccessIO.preset, DeliveryUnitClient.submit

    async def elsewhere(self, room_token, angle_deg, species_token, armed):
        await preset(self, room_token, angle_deg + 1.0, species_token, armed)

    with monkeypatch.context() as patched:
        patched.setattr(RoomAccessIO, "preset", elsewhere)
        found = run_replay(file).difference
    assert found is not None and found.wire == "G1-safety" and "1000" in found.present

    async def more(self, grant):
        grant.counts1_max[-1] += 1
        return await submit(self, grant)

    monkeypatch.setattr(DeliveryUnitClient, "submit", more)
    found = run_replay(file).difference
    assert found is not None and "GRANT:SP" in found.recorded and "word " in found.detail
