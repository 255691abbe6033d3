"""A facility may tighten, never relax; figures of its own are checked."""

from pathlib import Path

import pytest

from controller.limit_figures import figures_text
from drivers.hal.facility import load_facility
from interlocks.matrix import SHIPPED, LimitsError, load, parse
from interlocks.overlay import overlay_of

TEXT = SHIPPED.read_bytes()
FACILITIES = ("asan", "qst", "research")


def over(text):
    return parse(TEXT, "overlay", overlay=text.encode())


def test_what_is_tighter_is_taken():
    limits = over(
        """
        [engine]
        bypass_max_h = 2.0
        plan_required = true
        proof_required = true
        [interlock.RING_ANGLE]
        test = { limit = 150 }
        when = { deadline_ms = 50, withholds = "always", trips = "always" }
        reaction = { bypassable_in = [], action = ["BEAM_OFF", "MOTION_STOP"] }
        source = "site acceptance 7"
        [interlock.RING_SPEED]
        when = { deadline_ms = 380, debounce_ms = 0 }
        source = "site acceptance 7"
        [interlock.PERMIT_A]
        when = { deadline_ms = 100, hold_ms = 500 }
        source = "site acceptance 8"
        [interlock.HW_SPOT_POSITION]
        test = { pause = 800 }
        source = "site acceptance 9"
        """
    )
    row = limits.row("RING_ANGLE")
    assert (row.params["limit"], row.trips, row.withholds, row.bypassable_in) == (150, "always", True, ())
    assert row.params["modulus"] == 360000
    assert row.source.endswith("; facility: site acceptance 7")
    assert (limits.bypass_max_h, limits.plan_required, limits.proof_required) == (2.0, True, True)
    assert limits.row("RING_SPEED").debounce_ms == 0
    assert limits.row("PERMIT_A").hold_ms == 500
    assert limits.row("HW_SPOT_POSITION").params["pause"] == 800
    assert limits.sha256 == load().sha256
    assert limits.overlay_sha256 != load().overlay_sha256 == ""
    assert len(limits.rows) == len(load().rows)


RELAXED = {
    "a wider limit": ("RING_ANGLE", "test = { limit = 300 }", "limit = 300 relaxes 200"),
    "no limit": ("RING_ANGLE", "test = { limit = inf }", "limit = inf relaxes 200"),
    "not a number": ("RING_ANGLE", "test = { limit = nan }", "limit = nan relaxes 200"),
    "a later deadline": ("RING_ANGLE", "when = { deadline_ms = 60 }", "deadline_ms = 60 relaxes 50"),
    "a longer debounce": ("PERMIT_A", "when = { deadline_ms = 100, debounce_ms = 51 }", "debounce_ms = 51 relaxes 50"),
    "a debounce where none was": ("DOOR", "when = { deadline_ms = 50, debounce_ms = 5 }", "debounce_ms = 5 relaxes None"),
    "fewer phases": ("RING_ENCODERS", 'when = { deadline_ms = 50, trips = "armed" }', "trips = 'armed' relaxes 'always'"),
    "another phase": ("RING_SPEED", 'when = { deadline_ms = 400, trips = "beam" }', "trips = 'beam' relaxes 'moving'"),
    "only when tripped": ("DOOR", 'when = { deadline_ms = 50, withholds = "tripped" }', "withholds = 'tripped' relaxes"),
    "no latch": ("DOOR", "reaction = { latch = false }", "latch = False relaxes True"),
    "a bypass": ("ESTOP", 'reaction = { bypassable_in = ["service"] }', "bypassable_in = ['service'] relaxes []"),
    "a weaker action": ("DOOR", 'reaction = { action = ["BEAM_PAUSE"] }', "relaxes ['DUMP_AND_STOP', 'INHIBIT_MOTION']"),
    "another role": ("DOOR_CONTACTS", 'reaction = { reset_role = "operator" }', "reset_role cannot be changed"),
    "another input": ("DOOR", 'test = { inputs = ["door_a_closed"] }', "inputs cannot be changed"),
    "another good value": ("ESTOP", "test = { value = 0 }", "value cannot be changed"),
    "a vote": ("DOOR", "test = { vote = 2 }", "vote cannot be changed"),
    "another class": ("DOOR", 'sort = { class = "OPS" }', "sort cannot be changed"),
    "a missing deadline": ("RING_ANGLE", 'when = { withholds = "always" }', "deadline_ms missing"),
    "an unknown row": ("DOORS", "test = { limit = 1 }", "DOORS is not a row of the shipped file"),
    "a number as switch": ("DOOR", "reaction = { latch = 1 }", "latch = 1 relaxes True"),
    "junk": ("DOOR", "test = 5", "test is not a table"),
}


@pytest.mark.parametrize("name", list(RELAXED))
def test_what_is_not_tighter_is_refused_with_the_reason(name):
    row, change, reason = RELAXED[name]
    with pytest.raises(LimitsError) as caught:
        over(f'[interlock.{row}]\n{change}\nsource = "x"\n')
    assert any(reason in why for why in caught.value.reasons), caught.value.reasons


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[engine]\nbypass_max_h = 9.0", "bypass_max_h = 9.0 relaxes 8.0"),
        ("[engine]\nstale_ms = 500", "stale_ms = 500 relaxes 150"),
        ("[engine]\nplan_required = 1", "plan_required = 1 relaxes False"),
        ("[engine]\nhaste = 1", "haste cannot be changed"),
        ("[motor]\na = 1", "unknown table 'motor'"),
        (
            "[RING_ANGLE]\ntest = { limit = 150 }",
            "unknown table 'RING_ANGLE': a row is [interlock.ID] with source and test = {",
        ),
        ("interlock = 150", "unknown table 'interlock': a row is [interlock.ID]"),
        ("[[interlock]]\nid = 'RING_ANGLE'", "unknown table 'interlock': a row is [interlock.ID]"),
        ("conversion = []", "unknown table 'conversion'"),
        (
            "[interlock.RING_ANGLE]\nlimit = 150\nsource = 'x'",
            "limit cannot be changed: a row is [interlock.ID] with source and",
        ),
        ("[interlock.RING_ANGLE]\ntest = { limit = 150 }", "source missing"),
        ("[conversion.MU]\n6012 = [[100.0, 1000.0], [50.0, 1000.0]]", "conversion.MU.6012"),
        ("[conversion.MU]\n6012 = [[100.0, 0.0]]", "conversion.MU.6012"),
        ("[conversion.GY]\n6012 = [[100.0, 1.0]]", "conversion.GY.6012"),
        ("]]", "not a limits file"),
    ],
)
def test_other_faults_are_refused_as_well(text, reason):
    with pytest.raises(LimitsError) as caught:
        over(text)
    assert any(reason in why for why in caught.value.reasons), caught.value.reasons


def test_all_reasons_come_at_once():
    with pytest.raises(LimitsError) as caught:
        over("".join(f"[interlock.{row}]\n{change}\n" for row, change, _ in (RELAXED["a wider limit"], RELAXED["no latch"])))
    assert len(caught.value.reasons) == 5  # each relaxed and without a source, and a PERS row unlatched


@pytest.mark.parametrize("facility", FACILITIES)
def test_the_shipped_figures_are_those_of_the_signed_beam_library(facility):
    path = overlay_of(facility)
    assert path is not None
    _, _, figures = path.read_text(encoding="utf-8").partition("# Counts of")
    assert "# Counts of" + figures == figures_text(facility), f"print them anew: iongantry limit-figures --facility {facility}"
    limits = load(overlay=path)
    installed = load_facility(facility)
    assert {species for _, species in limits.conversion} == {
        1000 * ion.atomic_number + ion.mass_number for ion in map(_ion, installed.accelerator.species)
    }


def _ion(offer):
    from drivers.hal.ions import IONS

    return IONS[offer.symbol]


def test_a_facility_without_an_overlay_has_none():
    assert overlay_of("nowhere") is None
    assert not load().plan_required
    assert isinstance(overlay_of("asan"), Path)


def test_the_example_of_the_page_is_taken_as_it_is_written():
    page = (Path(__file__).parents[2] / "docs/interlocks.md").read_text(encoding="utf-8")
    written = page.split("## Changing a limit")[1].split("```toml\n")[1].split("```")[0]
    limits = over(written)
    assert limits.plan_required
    assert (limits.row("RING_ANGLE").params["limit"], limits.row("COOLING_FLOW").params["low"]) == (150, 850)
    assert (limits.row("COOLING_FLOW").hold_ms, limits.row("COOLING_FLOW").bypassable_in) == (500, ())
