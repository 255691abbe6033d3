"""Presets and grants are held against the interlock system's own reading of the plan; no permit beside a difference."""

from pathlib import Path

import pytest
from safety_room import MS, Bench, SafetyRoom, image_of

from interlocks.daemon import InterlockNode, obey
from interlocks.matrix import SHIPPED, load, parse
from interlocks.overlay import overlay_of
from interlocks.plan_ceilings import Beam, Layer, PlanNotUnderstood, read
from interlocks.plan_watch import ceilings_of, counts_per_unit

PLAN = Path(__file__).parents[2] / "examples" / "carbon_sphere.dcm"
DATA = PLAN.read_bytes()
BEAM = read(DATA).beams[0]
LIMITS = load(overlay=overlay_of("asan"))
COUNTS_PER_MU = 1000.0  # drivers/hal/facilities/asan.toml
FIELD = round(BEAM.total * COUNTS_PER_MU)
RATIO2 = 1.0072  # counts of monitor 2 per count of monitor 1, by the signed library (figures in limits.d/asan.toml)
ARMED = {
    "armed": 1,
    "preset_plan": read(DATA).hash,
    "preset_beam": BEAM.number,
    "preset_angle_mdeg": round(BEAM.gantry_deg * 1000),
    "ring_angle_mdeg": round(BEAM.gantry_deg * 1000),
    "motor_angle_mdeg": round(BEAM.gantry_deg * 1000),
    "preset_species_token": BEAM.species,
    "species_token": BEAM.species,
    "unit2_field_ceiling": round(FIELD * RATIO2),
    "unit2_spot_ceiling": round(BEAM.spot * COUNTS_PER_MU * RATIO2),
}
GRANTED = ("granted_field", "granted_row", "granted_layer_number", "granted_layer", "granted_plan", "granted_beam")
NOTHING_GRANTED = dict.fromkeys((*GRANTED, "counts1", "counts2"), 0)


class RealBench(Bench):
    """A bench whose node works its own registers out by itself."""

    def start(self, journal=None, latched=()):
        self.node = InterlockNode(
            self.room.read_image,
            self.room.write_permit,
            self.limits,
            boot_id=7,
            read_pulses=self.room.read_pulses,
            latched=latched,
            journal=journal or self.records.append,
        )


def bench(limits=LIMITS, plan=DATA):
    """Permit given, nothing armed, the plan known."""
    made = RealBench(limits, **NOTHING_GRANTED)
    made.step()
    made.run(100)
    if plan is not None:
        assert made.node.give_plan(made.room.now_ns, plan)
    made.press("key")
    made.run(200)
    assert made.permit
    return made


def armed(**changes):
    made = bench()
    made.set(**{**ARMED, **changes})
    made.run(100)
    return made


def grant(made, share=0.3, layer=1, **changes):
    """The delivery unit was granted so much of the field."""
    counts = round(BEAM.layers[layer - 1].total * COUNTS_PER_MU)
    values = {
        "granted_field": round(FIELD * share),
        "granted_row": round(BEAM.layers[layer - 1].spot * COUNTS_PER_MU),
        "granted_layer_number": layer,
        "granted_layer": counts,
        "granted_plan": ARMED["preset_plan"],
        "granted_beam": BEAM.number,
    }
    made.set(**{**values, **changes})
    made.run(100)


def test_the_planned_beam_is_permitted_to_its_end():
    made = armed()
    for layer in range(1, len(BEAM.layers) + 1):
        grant(made, share=layer / len(BEAM.layers), layer=layer)
        assert made.permit, made.tripped
    assert made.tripped == ()


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"preset_plan": ARMED["preset_plan"] ^ 1}, "PLAN_KNOWN"),
        ({"preset_beam": BEAM.number + 1}, "PLAN_KNOWN"),
        ({"preset_plan": 0, "preset_beam": 0}, "PLAN_KNOWN"),
        ({"preset_angle_mdeg": ARMED["preset_angle_mdeg"] + 111}, "PLAN_ANGLE"),
        ({"preset_species_token": 2004, "species_token": 2004}, "PLAN_SPECIES"),
    ],
)
def test_a_preset_that_is_not_of_the_plan_withholds(changes, row):
    made = armed(**changes)
    assert row in made.tripped
    assert not made.permit
    first = made.node.decision.first_out
    assert first is not None
    assert first.id == row


def test_a_full_turn_is_no_difference_and_a_port_tolerance_none_either():
    turned = ARMED["preset_angle_mdeg"] - 360_000
    assert armed(preset_angle_mdeg=turned, ring_angle_mdeg=turned, motor_angle_mdeg=turned).permit
    near = ARMED["preset_angle_mdeg"] + 100
    assert armed(preset_angle_mdeg=near).permit


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"granted_field": round(FIELD * 1.02) + 52}, "PLAN_FIELD"),
        ({"granted_layer": round(BEAM.layers[0].total * COUNTS_PER_MU * 1.02) + 52}, "PLAN_LAYER"),
        ({"granted_row": round(BEAM.spot * COUNTS_PER_MU * 1.02) + 22}, "PLAN_SPOT"),
        ({"granted_layer_number": len(BEAM.layers) + 1}, "PLAN_KNOWN"),
        ({"granted_plan": ARMED["preset_plan"] ^ 2}, "PLAN_KNOWN"),
        ({"granted_beam": BEAM.number + 1}, "PLAN_KNOWN"),
    ],
)
def test_a_grant_beyond_the_plan_withholds(changes, row):
    made = armed()
    grant(made)
    assert made.permit
    grant(made, **changes)
    assert made.tripped == (row,)
    assert not made.permit
    made.set(**{**NOTHING_GRANTED, "armed": 0})
    assert made.press("operator") == (), "a physicist decides"
    assert made.press("physicist") == (row,)


def excess():
    """0.25 Gy over one spot of the highest energy, counts of monitor 2, off the nearest line of the overlay."""
    lines = dict(LIMITS.conversion["excess2", BEAM.species])
    energy = max(layer.energy_mev_u for layer in BEAM.layers)
    low, high = max(e for e in lines if e <= energy), min(e for e in lines if e >= energy)
    return lines[low] if low == high else lines[low] + (lines[high] - lines[low]) * (energy - low) / (high - low)


def loads():
    """What the second dose unit may be loaded with at most: field and spot."""
    spot = BEAM.spot * COUNTS_PER_MU * RATIO2 * 1.05 + 20
    return (FIELD * RATIO2 + excess()) * 1.02 + 50, spot * 1.02 + 20


NOTHING = 0x7FFF_FFFF  # the node shows this where no ceiling is loaded


@pytest.mark.parametrize("factor", [0.01, 0.5, 0.99])
def test_ceilings_of_the_second_unit_up_to_what_the_plan_allows_are_permitted(factor):
    field, spot = loads()
    made = armed(unit2_field_ceiling=round(field * factor), unit2_spot_ceiling=round(spot * factor))
    grant(made)
    assert made.permit, made.tripped


@pytest.mark.parametrize("factor", [1.02, 10.0, None])
@pytest.mark.parametrize("index", [0, 1])
def test_a_second_unit_loaded_with_more_than_the_plan_allows_or_nothing_withholds_before_any_grant(factor, index):
    name, row = (("unit2_field_ceiling", "PLAN_CEILING2_FIELD"), ("unit2_spot_ceiling", "PLAN_CEILING2_SPOT"))[index]
    loaded = NOTHING if factor is None else round(loads()[index] * factor)
    made = armed(**{name: loaded})
    assert made.tripped == (row,)
    assert not made.permit
    first = made.node.decision.first_out
    assert (first.id, first.shown[1]) == (row, loaded)
    assert first.shown[2] == pytest.approx(loads()[index], rel=0.005)
    made.set(**{**ARMED, "armed": 0})
    assert made.press("operator") == (), "a physicist decides"
    assert made.press("physicist") == (row,)


def test_without_a_plan_no_ceiling_of_the_second_unit_is_judged():
    made = bench(plan=None)
    made.set(**{**ARMED, "unit2_field_ceiling": NOTHING, "unit2_spot_ceiling": NOTHING})
    made.run(100)
    assert made.permit


def test_ceilings_that_are_not_loaded_matter_only_once_a_treatment_is_armed():
    made = bench()
    made.set(unit2_field_ceiling=NOTHING, unit2_spot_ceiling=NOTHING)
    made.run(300)
    assert made.permit


def test_the_ceiling_itself_is_permitted():
    made = armed()
    grant(made, granted_field=round(FIELD * 1.02), granted_layer=round(BEAM.layers[0].total * COUNTS_PER_MU * 1.02))
    assert made.permit, made.tripped


def test_a_field_begun_again_while_armed_does_not_make_anybody_forget():
    made = armed()
    grant(made, share=0.6, counts1=round(FIELD * 0.6), counts2=round(FIELD * 0.6))
    assert made.permit
    grant(made, share=0.5, counts1=0, counts2=0, granted_layer=0)  # zeroed, and half of the field granted anew
    assert made.tripped == ("PLAN_FIELD",)


def test_arming_anew_begins_a_new_account():
    made = armed()
    grant(made, share=0.6, counts1=round(FIELD * 0.6), counts2=round(FIELD * 0.6))
    made.set(armed=0)
    made.set(**{**NOTHING_GRANTED, "armed": 1})
    grant(made, share=0.6)
    assert made.permit, made.tripped


def test_without_a_plan_the_rows_sleep_unless_a_plan_is_required():
    made = bench(plan=None)
    made.set(**ARMED)
    made.run(100)
    assert made.permit
    required = parse(SHIPPED.read_bytes(), overlay=b"[engine]\nplan_required = true\n")
    made = bench(required, plan=None)
    made.set(**ARMED)
    made.run(100)
    assert made.tripped == ("PLAN_KNOWN",)


def test_a_plan_that_cannot_be_read_is_worse_than_none():
    made = bench()
    assert not made.node.give_plan(made.room.now_ns, DATA[:-100])
    assert made.records[-1]["refused"]
    made.set(**ARMED)
    made.run(100)
    assert made.tripped == ("PLAN_KNOWN",)


def test_no_plan_is_exchanged_under_an_armed_treatment():
    made = armed()
    assert not made.node.give_plan(made.room.now_ns, b"another")
    made.run(100)
    assert made.permit
    assert "armed" in made.records[-1]["refused"][0]


def test_the_socket_takes_a_plan_with_its_hash_only(tmp_path):
    made = bench(plan=None)
    path = tmp_path / "a plan.dcm"
    path.write_bytes(DATA)
    told = read(DATA).sha256
    wrong = (f"plan {path} {told[:-1]}x", f"plan {path}", f"plan {tmp_path / 'none'} {told}", "plan")
    for message in (*wrong, f"plan {path} {told}"):
        obey(made.node, message.encode(), made.room.now_ns)
    kept = [record["refused"] for record in made.records if record["kind"] == "plan"]
    assert [bool(refused) for refused in kept] == [True, True, True, True, False]
    made.set(**ARMED)
    made.run(100)
    assert made.permit, made.tripped


def test_a_plan_is_answered_and_can_be_taken_back(tmp_path):
    made = bench(plan=None)
    path = tmp_path / "plan.dcm"
    path.write_bytes(DATA)
    told = read(DATA).sha256
    assert obey(made.node, f"plan {path} {told}".encode(), made.room.now_ns) == f"plan taken {told} ".encode()
    wrong = obey(made.node, f"plan {path} {told[:-1]}x".encode(), made.room.now_ns).decode()
    assert wrong.startswith("plan refused") and "SHA-256" in wrong
    made.set(**ARMED)
    made.run(100)
    assert made.tripped == ("PLAN_KNOWN",), "of a refused plan no beam is known"
    assert b"armed" in obey(made.node, b"plan back", made.room.now_ns), "not under an armed treatment"
    made.set(armed=0)
    made.run(100)
    assert obey(made.node, b"plan back", made.room.now_ns) == b"plan taken back "
    made.press("physicist")
    made.set(**ARMED)
    made.run(100)
    assert made.permit, made.tripped
    assert obey(made.node, b"press operator", made.room.now_ns) == b""


def test_figures_are_straight_lines_and_nothing_is_guessed_beyond_them():
    figures = {("NP", 6012): ((100.0, 0.03), (200.0, 0.02))}
    second = {("ratio2", 6012): ((100.0, 0.5), (200.0, 0.4)), ("excess2", 6012): ((100.0, 999.0), (200.0, 100.0))}
    assert counts_per_unit(figures, "NP", 6012, 150.0) == pytest.approx(0.025)
    assert counts_per_unit(figures, "NP", 6012, 100.0) == 0.03
    assert counts_per_unit(figures, "NP", 6012, 200.0) == 0.02
    for unit, species, energy in (("NP", 6012, 99.9), ("NP", 6012, 200.1), ("MU", 6012, 150.0), ("NP", 2004, 150.0)):
        with pytest.raises(PlanNotUnderstood, match="no conversion figure"):
            counts_per_unit(figures, unit, species, energy)
    beam = Beam(1, "NP", 6012, 30.0, 3e6, (Layer(200.0, 2e6, 1e5), Layer(100.0, 1e6, 9e4)))
    with pytest.raises(PlanNotUnderstood, match="no conversion figure for ratio2"):
        ceilings_of(beam, figures)
    ceilings = ceilings_of(beam, {**figures, **second})
    assert ceilings.layers == pytest.approx((4e4, 3e4))
    assert (ceilings.field, ceilings.row) == pytest.approx((7e4, 2700.0))
    assert (ceilings.field2, ceilings.spot2) == pytest.approx((3.5e4 + 100.0, 1350.0 * 1.05 + 20.0))


def test_an_image_that_is_not_of_registers_is_left_to_be_refused():
    room = SafetyRoom()
    made = bench()
    for image in ([], [1.5] * 138, [None] * 138, image_of(room.values, 1)[:100]):
        made.node._read_image = lambda image=image: image
        made.room.now_ns += 50 * MS
        made.step()
        assert not made.permit
