"""What was: plans, treatments, readings and entries, asked over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from console_site import until

from controller.console.views import TreatmentSummary


async def test_plans_are_listed_and_asked_for_by_id(site):
    ann = await site.sign_in("observer")
    (plan,) = (await ann.get("/api/plans")).json()
    assert (await ann.get(f"/api/plans/{plan['id']}")).json() == plan
    missing = await ann.get("/api/plans/ffffffffffff")
    assert missing.status_code == 404 and missing.json()["code"] == 4443
    assert (await ann.get("/api/plans/..%2f..%2fusers")).status_code in (404, 422)


async def test_treatments_are_listed_by_room_and_asked_for_by_id(site):
    known = {
        "plan_label": "Sphere",
        "patient_id": "P-1",
        "fraction": 1,
        "status": "complete",
        "started_utc": "2031-01-01T08:00:00+00:00",
    }
    dose = {"simulated": True, "meterset_planned": 72.0, "meterset_delivered": 72.0, "unit": "MU", "files": []}
    site.room.treatments = [TreatmentSummary(id=f"t-{room}", room=room, **known, **dose) for room in ("G1", "G2")]
    ann = await site.sign_in("observer")
    assert [one["id"] for one in (await ann.get("/api/treatments")).json()] == ["t-G1", "t-G2"]
    assert [one["id"] for one in (await ann.get("/api/treatments?room=G1")).json()] == ["t-G1"]
    one = (await ann.get("/api/treatments/t-G1")).json()
    assert one["plan_label"] == "Sphere" and one["sessions"] == []
    assert (await ann.get("/api/treatments/t-G9")).status_code == 404
    assert (await ann.get("/api/treatments?room=G9")).status_code == 404


async def test_the_history_of_a_signal_is_what_the_room_showed(site):
    ann = await site.sign_in("observer")
    site.room.marks["0.0"] = 42.5

    def held():
        return [signal for signal in site.hub.archive.signals() if signal.signal.endswith("value_0")]

    await until(held)
    name = (await ann.get("/api/history/signals?room=G1")).json()["signals"]
    signal = next(one["signal"] for one in name if "device-0" in one["signal"] and one["signal"].endswith("value_0"))
    now = datetime.now(UTC)
    span = {"from_utc": (now - timedelta(minutes=1)).isoformat(), "to_utc": (now + timedelta(minutes=1)).isoformat()}

    async def last():
        told = (await ann.get("/api/history", params={"room": "G1", "signal": signal, **span})).json()
        return [value for value in told["last"] if value is not None][-1:]

    for _ in range(200):
        if await last() == [42.5]:
            break
        await until(lambda seen=site.room._seq: site.room._seq > seen)
    assert await last() == [42.5]
    wrong = await ann.get("/api/history", params={"room": "G1", "signal": signal, "from_utc": "yesterday", "to_utc": "now"})
    assert wrong.status_code == 422 and wrong.json()["reason"]
    assert (await ann.get("/api/history/signals?room=nowhere")).status_code == 404

    before = {"from_utc": (now - timedelta(days=9)).isoformat(), "to_utc": (now - timedelta(days=8)).isoformat()}
    empty = await ann.get("/api/history", params={"room": "G1", "signal": signal, **before})
    assert empty.status_code == 200 and empty.json()["t_ms"] == [], "known, and nothing then"
    for room, asked in (("G1", f"{signal}x"), ("G9", signal)):
        unknown = await ann.get("/api/history", params={"room": room, "signal": asked, **span})
        assert unknown.status_code == 404 and asked in unknown.json()["reason"]
        assert "/api/history/signals" in unknown.json()["hint"]
        assert (signal in unknown.json()["hint"]) is (room == "G1"), "the nearest name is told"


async def test_the_audit_of_a_room_is_told_newest_first(site):
    ann = await site.sign_in("operator")
    await ann.command("take_control")
    await ann.command("beam_on")
    told = (await ann.get("/api/audit?room=G1&limit=10")).json()
    assert told["source"] == "G1"
    names, numbers = [entry["name"] for entry in told["entries"]], [entry["seq"] for entry in told["entries"]]
    assert names[0] == "beam_on" and set(names[1:]) == {"take_control"}
    assert numbers == sorted(numbers, reverse=True)
    assert told["entries"][0]["kind"] == "command.refused" and told["entries"][0]["actor"] == "operator"


async def test_the_layers_of_the_current_beam_are_given(site):
    ann = await site.sign_in("operator")
    site.room._start_beam()
    await until(lambda: site.hub.link("G1").spots_lines)
    (layer,) = (await ann.get("/api/rooms/G1/spots")).json()
    assert layer["layer_index"] == 0 and len(layer["x_mm"]) == len(layer["mu_planned"]) and not layer["complete"]


async def test_a_salvage_record_is_reached_by_its_name_and_by_no_way_round(site, tmp_path):
    ann = await site.sign_in("observer")
    salvage = site.state / "treatments" / "t-1" / "resume-1" / "salvage"
    salvage.mkdir(parents=True)
    (salvage / "record.dcm").write_bytes(b"salvaged")
    files = "/api/treatments/t-1/files"
    found = await ann.get(f"{files}/salvage-record.dcm?session=resume-1")
    assert (found.status_code, found.content) == (200, b"salvaged")
    assert (await ann.get(f"{files}/salvage-record.dcm")).status_code == 404
    assert (await ann.get(f"{files}/record.dcm?session=resume-1")).status_code == 404
    assert (await ann.get(f"{files}/salvage-report.html?session=resume-1")).status_code == 404
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "record.dcm").write_bytes(b"not ours")
    (site.state / "treatments" / "t-1" / "salvage").symlink_to(elsewhere)
    assert (await ann.get(f"{files}/salvage-record.dcm")).status_code == 404
