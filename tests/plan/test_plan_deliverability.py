"""Each reason why a plan cannot be delivered in a room, with the numbers; and what overrides lift."""

from dataclasses import replace

import numpy as np
import pytest
from plan_edit import beam, cp, ref

from controller.plan.deliverability import check, machine_angle_deg, overridden
from controller.plan.errors import Why
from controller.plan.model import Accessories, Change, CouchTargets, RangeShifterUse
from controller.plan.nominal import NominalLibrary
from drivers.hal.errors import CommandRejected
from drivers.hal.ions import CARBON, NEON, PROTON


@pytest.fixture
def plan(small, read):
    return read(small)


def judge(plan, facility, room="G1", library=None, **options):
    return check(plan, facility, facility.rooms[room], library or NominalLibrary(facility.meterset), **options)


def with_beam(plan, **changes):
    """The plan with its first beam changed."""
    return replace(plan, beams=(replace(plan.beams[0], **changes), *plan.beams[1:]))


def with_layer(plan, **changes):
    """The plan with the first layer of its first beam changed."""
    one = plan.beams[0]
    return with_beam(plan, layers=(replace(one.layers[0], **changes), *one.layers[1:]))


def test_a_made_plan_is_deliverable_where_it_was_made_for(plan, asan):
    assert judge(plan, asan) == []


def test_the_second_gantry_room_wants_its_own_name_or_an_override(plan, asan):
    reasons = judge(plan, asan, "G2")
    assert [(r.why, r.where) for r in reasons] == [(Why.MACHINE, "beam 1"), (Why.MACHINE, "beam 2")]
    assert "treat it in room G1" in str(reasons[0])
    assert judge(plan, asan, "G2", overrides={"machine": "training"}) == []


RS = RangeShifterUse(1, "RS30", "BINARY", "IN", 30.0)
# what is changed in the beam, the one kind of reason it must give, words that must be in it
REFUSED_BEAMS = {
    "machine": ({"machine_name": "TR3"}, Why.MACHINE, "TR3"),
    "gantry": ({"gantry_angle_deg": float("nan")}, Why.GANTRY, "nan"),
    "couch lateral": ({"couch": CouchTargets(lateral_mm=400.0)}, Why.COUCH, "400 mm (limit -250 to 250 mm)"),
    "couch angle": ({"couch": CouchTargets(angle_deg=180.0)}, Why.COUCH, "180 deg"),
    "couch pitch": ({"couch": CouchTargets(pitch_deg=5.0)}, Why.COUCH, "pitch"),
    "snout": ({"snout_mm": 20.0}, Why.SNOUT, "20 mm (limit 50 to 500 mm)"),
    "foreign range shifter": ({"range_shifters": (replace(RS, id="RS=2cm"),)}, Why.RANGE_SHIFTER, "RS=2cm"),
    "unsaid range shifter": ({"range_shifters": (replace(RS, setting=""),)}, Why.RANGE_SHIFTER, "does not say"),
    "variable range shifter": ({"range_shifters": (replace(RS, kind="ANALOG"),)}, Why.RANGE_SHIFTER, "variable"),
    "dynamic": ({"beam_type": "DYNAMIC"}, Why.BEAM_TYPE, "DYNAMIC"),
    "chair": ({"patient_support_type": "CHAIR"}, Why.SUPPORT, "CHAIR"),
    "eye": ({"fixation": "FixationEye L"}, Why.FIXATION, "eye fixation"),
    "uniform": ({"scan_mode": "UNIFORM", "layers": ()}, Why.SCAN_MODE, "UNIFORM"),
    "line scanning": ({"scan_mode": "MODULATED_SPEC", "layers": ()}, Why.SCAN_MODE, "MODULATED_SPEC"),
    "portal film": ({"delivery_type": "TRMT_PORTFILM"}, Why.DELIVERY_TYPE, "TRMT_PORTFILM"),
    "continuation": ({"delivery_type": "CONTINUATION"}, Why.DELIVERY_TYPE, "CONTINUATION"),
    "block": ({"accessories": Accessories(blocks=1)}, Why.ACCESSORY, "blocks"),
    "bolus": ({"accessories": Accessories(boli=2)}, Why.ACCESSORY, "boli"),
    "charge": ({"charge_state": 4}, Why.SPECIES, "C4+"),
    "species": ({"ion": PROTON, "charge_state": 1}, Why.SPECIES, "p (limit C, He, O, Ne)"),
    "moving gantry": ({"changes": (Change("GantryAngle", 4, "0", "5"),)}, Why.CHANGES, "beam 1, control point 4"),
    "no layers": ({"layers": ()}, Why.COUNTS, "no layers"),
}


@pytest.mark.parametrize("name", REFUSED_BEAMS)
def test_a_beam_the_room_cannot_deliver(plan, asan, name):
    changes, why, words = REFUSED_BEAMS[name]
    reasons = judge(with_beam(plan, **changes), asan)
    assert {r.why for r in reasons} == {why}
    assert all(r.where.startswith("beam 1") for r in reasons)
    assert words in str(reasons[0])


def test_every_reason_is_told_at_once(plan, asan):
    changes = {}
    for name in (
        "machine",
        "couch lateral",
        "snout",
        "dynamic",
        "chair",
        "eye",
        "block",
        "moving gantry",
        "unsaid range shifter",
    ):
        changes |= REFUSED_BEAMS[name][0]
    bad = replace(with_beam(with_layer(plan, energy_mev_u=5160.0), **changes), approval="UNAPPROVED")
    kinds = {r.why for r in judge(bad, asan)}
    assert kinds == {
        Why.MACHINE,
        Why.COUCH,
        Why.SNOUT,
        Why.BEAM_TYPE,
        Why.SUPPORT,
        Why.FIXATION,
        Why.ACCESSORY,
        Why.CHANGES,
        Why.RANGE_SHIFTER,
        Why.ENERGY,
        Why.APPROVAL,
    }


def test_total_energy_is_recognised_and_per_nucleon_asked_for(plan, asan):
    (reason,) = judge(with_layer(plan, energy_mev_u=5160.0), asan)
    assert reason.why is Why.ENERGY
    assert "per nucleon" in reason.hint
    assert "430 MeV/u" in reason.hint


@pytest.mark.parametrize(("energy", "fine"), [(300.0, True), (300.0001, True), (300.2, False), (431.0, False), (55.0, False)])
def test_energies_are_those_of_the_list(plan, asan, energy, fine):
    reasons = judge(with_layer(plan, energy_mev_u=energy), asan)
    assert [r.why for r in reasons] == ([] if fine else [Why.ENERGY])
    if not fine:
        assert f"{energy:g} MeV/u" in reasons[0].value
        assert "56 to 430 MeV/u in steps of 0.5" in reasons[0].limit


def test_a_list_without_steps_takes_any_energy(plan, research):
    changed = with_layer(plan, energy_mev_u=229.76)
    assert judge(changed, research, "R1", overrides={"machine"}) == []


def test_one_reason_for_all_layers_of_a_wrong_energy(plan, asan):
    layers = tuple(replace(layer, energy_mev_u=layer.energy_mev_u * 12) for layer in plan.beams[0].layers)
    (reason,) = judge(with_beam(plan, layers=layers), asan)
    assert f"{len(layers) - 1} more layers" in reason.value


def test_a_spot_outside_the_field(plan, asan):
    x = plan.beams[0].layers[0].x_mm.copy()
    x[3] = -100.5
    (reason,) = judge(with_layer(plan, x_mm=x), asan)
    assert (reason.why, reason.where) == (Why.FIELD, "beam 1, control point 0, spot 3")
    assert "(-100.5," in reason.value
    assert reason.limit == "+-100 x +-100 mm"
    x[3] = -100.0
    assert judge(with_layer(plan, x_mm=x), asan) == []


def test_a_spot_below_the_minimum(plan, asan):
    meterset = plan.beams[0].layers[0].meterset.copy()
    meterset[5] = 0.4
    meterset[6] = 0.45
    reasons = judge(with_layer(plan, meterset=meterset), asan)
    (reason,) = [r for r in reasons if r.why is Why.SPOT_MINIMUM]
    assert reason.where == "beam 1, control point 0, spot 5"
    assert reason.value == "0.4 MU, 1 more in 1 layer(s)"
    assert reason.limit == "0.5 MU"


def test_paintings_share_the_spot(plan, asan):
    meterset = np.full_like(plan.beams[0].layers[0].meterset, 1.9)
    assert judge(with_layer(plan, meterset=meterset), asan) == []
    reasons = judge(with_layer(plan, meterset=meterset, paintings=4), asan)
    assert Why.SPOT_MINIMUM in {r.why for r in reasons}
    assert "0.475 MU in each of 4 paintings" in str(reasons[0])


def test_a_spot_of_zero_weight_is_not_too_small(plan, asan):
    meterset = plan.beams[0].layers[0].meterset.copy()
    meterset[0] = 0.0
    assert judge(with_layer(plan, meterset=meterset), asan) == []


def test_a_spot_too_small_to_be_cut_off_says_so_in_numbers(small, read, asan):
    """Neon of low energy: 1 MU is some 1e4 ions, and 200 us of the lowest intensity let 400 through."""
    for point in beam(small).IonControlPointSequence:
        point.NominalBeamEnergy = "100"
    beam(small).RadiationAtomicNumber = beam(small).RadiationChargeState = 10
    beam(small).RadiationMassNumber = 20
    plan = read(small)
    assert plan.beams[0].ion is NEON
    meterset = np.full_like(plan.beams[0].layers[0].meterset, 1.0)
    reasons = judge(with_layer(plan, meterset=meterset), asan, beams=[1])
    (reason,) = [r for r in reasons if r.why is Why.CUT_OFF]
    ions = NominalLibrary(asan.meterset).ions_per_mu(NEON, 100.0)
    assert f"({ions:.4g} ions)" in reason.value
    assert "400 ions through" in reason.value
    assert f"{400 / ions:.2%}" in reason.value
    assert reason.limit == "2%"
    assert "smallest possible spot" in reason.hint


def test_a_spot_of_few_counts_cannot_be_measured(plan, research):
    meterset = plan.beams[0].layers[0].meterset.copy()
    meterset[0] = 0.02
    reasons = judge(with_layer(plan, meterset=meterset), research, "R1", overrides={"machine"})
    assert [r.why for r in reasons] == [Why.RESOLUTION]
    assert "20 counts" in reasons[0].value


def test_counts_that_no_grant_can_hold(plan, asan):
    meterset = plan.beams[0].layers[0].meterset.copy()
    meterset[0] = 3e6
    (reason,) = judge(with_layer(plan, meterset=meterset), asan)
    assert (reason.why, reason.limit) == (Why.COUNTS, str(2**31 - 1))


def test_a_row_the_library_has_not_released(plan, asan):
    class Withdrawn(NominalLibrary):
        def lookup(self, species, energy_mev_u, room, angle_deg, /):
            assert (species, room, angle_deg) == (CARBON, "G1", plan.beams[0].gantry_angle_deg)
            raise CommandRejected("row withdrawn", code=4303, hint="have it measured")

    reasons = judge(plan, asan, library=Withdrawn(asan.meterset), beams=[1])
    assert [r.why for r in reasons] == [Why.LIBRARY]
    assert "row withdrawn" in reasons[0].value
    assert reasons[0].hint == "have it measured"


def test_a_backup_timer_shorter_than_the_beam(plan, asan, small, read):
    (reason,) = judge(with_beam(plan, duration_limit_s=2.0), asan)
    assert (reason.why, reason.where, reason.limit) == (Why.DURATION, "beam 1", "2 s")
    assert judge(with_beam(plan, duration_limit_s=600.0), asan) == []
    ref(small).BeamDeliveryDurationLimit = 600.0
    assert read(small).beams[0].duration_limit_s == 600.0


def test_beams_that_do_not_exist_are_named_and_others_not_judged(plan, asan):
    bad = with_beam(plan, beam_type="DYNAMIC")
    assert judge(bad, asan, beams=[2]) == []
    (reason,) = judge(plan, asan, beams=[2, 7])
    assert (reason.why, reason.value, reason.limit) == (Why.NO_SUCH_BEAM, "7", "1, 2")


def test_approval_is_lifted_by_name_and_kept_for_the_record(plan, asan):
    bad = replace(plan, approval="UNAPPROVED")
    (reason,) = judge(bad, asan)
    assert (reason.why, reason.override, reason.value) == (Why.APPROVAL, "approval", "UNAPPROVED")
    assert judge(bad, asan, overrides={"approval"}) == []
    assert [r.why for r in judge(bad, asan, overrides={"machine"})] == [Why.APPROVAL]
    library = NominalLibrary(asan.meterset)
    assert [r.why for r in overridden(bad, asan, asan.rooms["G1"], library, {"approval", "machine"})] == [Why.APPROVAL]
    assert overridden(plan, asan, asan.rooms["G1"], library, {"approval"}) == []


def test_only_a_research_room_takes_foreign_range_shifters(plan, asan, research):
    bad = with_beam(plan, range_shifters=(replace(RS, id="RS=2cm"),), machine_name="TR3")
    assert [r.why for r in judge(bad, asan, overrides={"machine"})] == [Why.RANGE_SHIFTER]
    assert judge(bad, research, "R1", overrides={"machine"}) == []


def test_installed_range_shifters_and_those_left_out_are_fine(plan, asan):
    assert judge(with_beam(plan, range_shifters=(RS, replace(RS, id="other", setting="OUT"))), asan) == []


@pytest.mark.parametrize(
    ("room", "angle", "expected"),
    [
        ("G1", 0.0, 0.0),
        ("G1", 270.0, -90.0),
        ("G1", 180.0, 180.0),
        ("G1", -180.0, 180.0),
        ("G1", 359.5, -0.5),
        ("F1", 90.0, 90.0),
        ("F1", 360.0, 0.0),
        ("F1", 0.05, 0.0),
        ("F1", 45.0, None),
        ("F1", 270.0, None),
    ],
)
def test_where_a_room_goes_for_a_plans_angle(asan, room, angle, expected):
    assert machine_angle_deg(asan.rooms[room], angle) == expected


def test_a_fixed_room_names_its_ports(plan, asan):
    reasons = judge(with_beam(plan, gantry_angle_deg=30.0), asan, "F1", overrides={"machine"}, beams=[1])
    assert [(r.why, r.limit) for r in reasons] == [(Why.GANTRY, "ports 0, 90 deg")]


# --- the same through files ----------------------------------------------------------------------------------------------


def _turn(ds):
    cp(ds, 4).GantryAngle = "12"
    cp(ds, 4).IsocenterPosition = ["1", "2", "3"]


def _shift(ds):
    cp(ds, 2).TableTopLateralPosition = "7"


def _scale(ds):
    """A meterset scale so small that spots fall below the minimum."""
    ref(ds).BeamMeterset = f"{0.01 * float(ref(ds).BeamMeterset):.9g}"


FILES = {
    "DYNAMIC": (lambda ds: setattr(beam(ds), "BeamType", "DYNAMIC"), {Why.BEAM_TYPE}),
    "CHAIR": (lambda ds: setattr(beam(ds), "PatientSupportType", "CHAIR"), {Why.SUPPORT}),
    "eye": (lambda ds: setattr(beam(ds), "FixationEye", "R"), {Why.FIXATION}),
    "fixation light": (lambda ds: setattr(beam(ds), "FixationLightPolarAngle", 12.0), {Why.FIXATION}),
    "UNIFORM": (lambda ds: setattr(beam(ds), "ScanMode", "UNIFORM"), {Why.SCAN_MODE}),
    "unapproved": (lambda ds: setattr(ds, "ApprovalStatus", "UNAPPROVED"), {Why.APPROVAL}),
    "no approval": (lambda ds: delattr(ds, "ApprovalStatus"), {Why.APPROVAL}),
    "foreign": (lambda ds: setattr(beam(ds), "TreatmentMachineName", "TR9"), {Why.MACHINE}),
    "turning": (_turn, {Why.CHANGES}),
    "moving table": (_shift, {Why.CHANGES}),
    "tiny": (_scale, {Why.SPOT_MINIMUM, Why.CUT_OFF, Why.RESOLUTION}),
    "total energy": (
        lambda ds: [setattr(p, "NominalBeamEnergy", 3000) for p in beam(ds).IonControlPointSequence],
        {Why.ENERGY},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_delivered(small, read, asan, name):
    edit, kinds = FILES[name]
    edit(small)
    reasons = judge(read(small), asan)
    assert {r.why for r in reasons} & kinds
    assert {r.why for r in reasons} <= kinds


def test_all_changes_within_a_beam_are_told(small, read, asan):
    _turn(small)
    assert {r.what for r in judge(read(small), asan)} == {
        "GantryAngle changes within the beam",
        "IsocenterPosition changes within the beam",
    }


def test_repeating_a_value_is_no_change(small, read, asan):
    cp(small, 4).GantryAngle = cp(small, 0).GantryAngle
    cp(small, 4).SnoutPosition = None
    assert judge(read(small), asan) == []


def test_refusals_are_plain_values_for_machines_too(plan, asan):
    (reason,) = judge(with_beam(plan, beam_type="DYNAMIC"), asan)
    assert reason.as_dict() == {
        "code": 6213,
        "kind": "beam_type",
        "what": "the beam type is not supported",
        "where": "beam 1",
        "value": "DYNAMIC",
        "limit": "STATIC",
        "hint": "",
        "override": "",
    }
