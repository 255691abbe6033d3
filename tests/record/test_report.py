"""The report says how it ended, shows every spot, and needs nothing but itself."""

import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from record_example import make_beam, make_fraction

from controller.record.charts import spot_map
from controller.record.figures import beam_figures, checks
from controller.record.outcome import Status
from controller.record.report import render_report, verdict, write_report
from controller.record.spots import build_spots
from controller.record.svg import signed, ticks
from controller.record.timeline import irradiation_timeline, timeline


def page(fraction):
    return render_report(fraction, build_spots(fraction.beams))


def figures_of(fraction):
    table = build_spots(fraction.beams)
    return [beam_figures(b, table) for b in fraction.beams]


def strokes(svg, css):
    return sum(d.count("M") for d in re.findall(rf'<path class="{css}"[^>]* d="([^"]*)"', svg))


def test_a_complete_fraction_says_so_on_top_and_everything_is_within():
    text = page(make_fraction())
    assert "Delivered as prescribed" in text
    assert "✗ not met" not in text
    assert text.index("Delivered as prescribed") < text.index("Beam 1")


def test_a_partial_fraction_is_never_called_good():
    text = page(make_fraction((make_beam(1, 3, 30),), stop_after=40, overrides=True))
    assert 'class="verdict bad"' in text
    assert "Delivered in part" in text
    assert "position interlock" in text
    assert "spot 2.4 mm from plan, limit 2 mm" in text
    assert "machine QA on another room" in text
    assert "RESEARCH" in text


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_is_written_over_everything(simulated):
    assert ("SIMULATED" in page(make_fraction(simulated=simulated))) is simulated


def test_a_dose_error_turns_the_verdict_although_delivery_was_complete():
    fraction = make_fraction((make_beam(1),))
    beam = fraction.beams[0]
    fraction = replace(fraction, beams=(replace(beam, counts1_per_meterset=beam.counts1_per_meterset * 0.97),))
    lines = checks(fraction, figures_of(fraction))
    assert fraction.status is Status.COMPLETE
    assert {line.what for line in lines if not line.good} == {"Meterset per beam", "Spot meterset, 95 %"}
    mark, words = verdict(fraction, lines)
    assert mark == "!"
    assert "beyond their limits: meterset per beam, spot meterset" in words


def test_a_mirrored_axis_and_a_bias_are_seen():
    fraction = make_fraction((make_beam(1),))
    for change, expected in (
        (lambda p: p.__setitem__("x_um", -p["x_um"]), "Spot position, rms"),
        (lambda p: p.__setitem__("y_um", p["y_um"] + 600), "Spot position, mean"),
    ):
        passes = []
        for p in fraction.beams[0].passes:
            pieces = p.pieces.copy()
            change(pieces)
            passes.append(replace(p, pieces=pieces))
        wrong = replace(fraction, beams=(replace(fraction.beams[0], passes=tuple(passes)),))
        bad = {line.what for line in checks(wrong, figures_of(wrong)) if not line.good}
        assert expected in bad


def test_every_planned_spot_is_drawn_and_the_undelivered_as_rings():
    fraction = make_fraction((make_beam(1, 2, 30),), stop_after=40, cut_every=99)
    figures = figures_of(fraction)[0]
    whole, cut = spot_map(figures, 0), spot_map(figures, 1)
    assert strokes(whole, "planned") == 30
    assert strokes(whole, "missing") == 0
    assert sum(strokes(whole, css) for css in ("within", "low", "high", "under", "over")) == 30
    assert strokes(cut, "planned") == 30
    assert strokes(cut, "missing") == 20
    assert strokes(cut, "within") + strokes(cut, "low") + strokes(cut, "high") == 10


def test_errors_beyond_the_limit_carry_a_mark_besides_their_colour():
    fraction = make_fraction((make_beam(1, 1, 20),), cut_every=99)
    p = fraction.beams[0].passes[0]
    pieces = p.pieces.copy()
    pieces["counts1"][3] = pieces["counts1"][3] * 1.2
    pieces["counts1"][7] = pieces["counts1"][7] * 0.8
    fraction = replace(fraction, beams=(replace(fraction.beams[0], passes=(replace(p, pieces=pieces),)),))
    svg = spot_map(figures_of(fraction)[0], 0)
    assert (strokes(svg, "over"), strokes(svg, "under"), strokes(svg, "mark")) == (1, 1, 2)


def test_the_page_is_self_contained_and_well_formed():
    text = page(make_fraction(stop_after=100, overrides=True))
    assert not re.search(r"(src|href)\s*=|@import|<script|http", text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
    assert "nan" not in text.lower().replace("nanometre", "")


def test_names_from_a_plan_cannot_inject_markup():
    fraction = make_fraction((replace(make_beam(1), name="<script>alert(1)</script>"),))
    fraction = replace(fraction, plan=replace(fraction.plan, label="<b>x</b>"), reason="<i>")
    text = page(fraction)
    assert "<script" not in text
    assert "<b>x</b>" not in text


def test_the_course_shows_passes_holds_and_the_trip_and_a_beam_only_its_own():
    fraction = make_fraction((make_beam(1, 4, 30), make_beam(4, 3, 30)), stop_after=40)
    whole = timeline(fraction)
    assert whole.count('class="layer"') + whole.count('class="layer-cut"') == 6
    assert whole.count('class="layer-cut"') == 1
    assert whole.count('class="hold"') == len(fraction.holds)
    assert "⚡ position" in whole
    assert "⚡ request" not in whole, "a consequence is not what stopped the beam"
    first = irradiation_timeline(fraction, fraction.beams[0])
    assert first.count('class="layer"') == 4
    assert "⚡" not in first
    assert irradiation_timeline(fraction, replace(fraction.beams[0], passes=())) == ""


def test_a_fraction_without_dose_has_a_page_too():
    fraction = make_fraction()
    fraction = replace(fraction, beams=tuple(replace(b, passes=()) for b in fraction.beams), status=Status.FAULT, motion=())
    text = page(fraction)
    assert "No dose was delivered" in text
    assert "Ended by a fault" in text
    assert page(replace(fraction, beams=(), spills=(), states=(), holds=()))


def test_what_earlier_sessions_gave_is_not_missed_in_this_one():
    fraction = make_fraction((make_beam(1, 1, 10),), cut_every=99)
    outcome = fraction.beams[0]
    p = outcome.passes[0]
    second_half = replace(
        outcome,
        passes=(replace(p, pieces=p.pieces[5:]),),
        received_before=np.concatenate([p.grant.counts1_max[:5], np.zeros(5)]).astype(np.int64),
        continuation=True,
    )
    figures = beam_figures(second_half, build_spots([second_half]))
    assert abs(figures.meterset_error) < 0.01
    assert figures.spots_planned == 5


def test_thirty_thousand_spots_stay_small_and_quick(tmp_path):
    fraction = make_fraction((make_beam(1, 40, 750),), cut_every=50)
    table = build_spots(fraction.beams)
    start = time.perf_counter()
    write_report(fraction, table, tmp_path / "report.html")
    assert time.perf_counter() - start < 2.5
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_importing_the_outputs_loads_no_heavy_library():
    heavy = ("pyarrow", "pydicom", "jinja2", "matplotlib")
    modules = ("dicom_record", "report", "spots", "ledger", "reconcile", "event_file", "outcome")
    code = "import sys\n" + "".join(f"import controller.record.{m}\n" for m in modules)
    code += f"sys.exit(' '.join(m for m in {heavy!r} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""


def test_numbers_are_written_for_people():
    assert [signed(v) for v in (0.004, -0.004, 1.5, -1.5)] == ["0.00", "0.00", "+1.50", "−1.50"]
    assert ticks(0.0, 10.0, 5) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert ticks(3.0, 3.0, 5) == [3.0]
