"""A fraction as delivery would hand it over: a made-up plan, executed by a crude model of the unit. For the record's tests."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from controller.plan.model import Accessories, Beam, CouchTargets, Layer, Patient, PatientSetup, Plan, RangeShifterUse, Study
from controller.record.outcome import (
    BeamOutcome,
    FractionOutcome,
    Interlock,
    LoopLag,
    Machine,
    Override,
    PassOutcome,
    Span,
    Status,
    Termination,
)
from drivers.hal.capabilities import PIECE_DTYPE, EndReason, Grant, PieceFlag, ScanMode
from drivers.hal.ions import CARBON

COUNTS_PER_MU = 1000.0
COUNTS2_PER_MU = 970.0
QUANTUM = 15
S = 10**9
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_layer(index, spots, energy, paintings, rng):
    side = int(np.ceil(np.sqrt(spots)))
    x, y = np.meshgrid((np.arange(side) - side / 2) * 2.0, (np.arange(side) - side / 2) * 2.0)
    y[:, ::2] += 0.5
    return Layer(
        index, 2 * index, 0.0, 0.0, energy, x.ravel()[:spots], y.ravel()[:spots], rng.uniform(0.7, 3.0, spots), paintings, "F2"
    )


def make_beam(number=1, layers=3, spots=40, paintings=1, seed=0, angle=30.0):
    rng = np.random.default_rng(seed)
    made = tuple(make_layer(i, spots, 380.0 - 4.0 * i, paintings, rng) for i in range(layers))
    total = sum(layer.meterset_total for layer in made)
    start, weighed = 0.0, []
    for layer in made:
        weighed.append(
            replace(layer, cumulative_weight_start=start, cumulative_weight_end=start + layer.meterset_total / total * 100)
        )
        start = weighed[-1].cumulative_weight_end
    return Beam(
        number=number,
        name=f"B{number} LAO",
        description="made up",
        machine_name="G1",
        radiation_type="ION",
        ion=CARBON,
        charge_state=6,
        meterset_unit="MU",
        meterset=total,
        final_cumulative_weight=100.0,
        gantry_angle_deg=angle,
        layers=tuple(weighed),
        control_points=2 * layers,
        couch=CouchTargets(1.0, 2.0, -30.0, 0.0, 0.0, 0.0),
        snout_mm=200.0,
        snout_id="S1",
        range_shifters=(RangeShifterUse(1, "RS30", "BINARY", "IN", 30.0),),
        accessories=Accessories(range_shifters=1),
        isocentre_mm=(0.0, 0.0, 0.0),
        virtual_sad_mm=(8000.0, 8000.0),
        setup=PatientSetup(1, "HFS"),
    )


def make_plan(beams):
    return Plan(
        "1.2.826.0.1.3680043.8.498.1",
        "1.2.840.10008.5.1.4.1.1.481.8",
        "PANC",
        "pancreas-like",
        "APPROVED",
        "CURATIVE",
        12,
        tuple(beams),
        "ab" * 32,
        77,
        "plan.dcm",
        "dicom",
        Patient("Doe^Jane", "P1", "19700101", "F"),
        Study("1.2.3.4", "1.2.3.5", "ST1", "20260101", "101500"),
        setups=(PatientSetup(1, "HFS"),),
    )


def deliver(beam, *, t_ns=0, stop_after=None, cut_every=7, seed=1, mode=ScanMode.RASTER, counts_per=COUNTS_PER_MU):
    """Passes of a beam: every `cut_every`th row in two pieces, counts carried. `stop_after`: rows until a position trip."""
    rng = np.random.default_rng(seed)
    passes, grant_id, rows_left = [], 0, 10**9 if stop_after is None else stop_after
    for layer in beam.layers:
        whole = np.rint(layer.meterset * counts_per).astype(np.int64)
        for painting in range(layer.paintings):
            counts = whole // layer.paintings + (painting < whole % layer.paintings)
            n = layer.spots
            grant_id += 1
            t_ns += S // 2
            grant = Grant(
                9,
                grant_id,
                77,
                1,
                beam.number,
                layer.index,
                painting,
                6012,
                round(layer.energy_mev_u * 1000),
                mode,
                10**8,
                QUANTUM,
                np.arange(n, dtype=np.int32),
                np.rint(layer.x_mm * 1000).astype(np.int32),
                np.rint(layer.y_mm * 1000).astype(np.int32),
                counts.astype(np.int32),
                counts.astype(np.int32) + 50,
            )
            carried = np.concatenate([[0], rng.integers(0, QUANTUM, n)])
            true = counts + np.diff(carried)
            done = min(n, rows_left)
            rows_left -= done
            pieces = row_pieces(grant, true[:done], t_ns, cut_every, rng, spill=1 + grant_id // 3)
            end = t_ns + S if pieces.size == 0 else int(pieces["t_end_ns"].max())
            tripped = done < n
            if tripped and pieces.size:
                pieces["flags"][-1] = int(PieceFlag.CUT_UNIT | PieceFlag.GATE_OPEN)
            reason = EndReason.POSITION if tripped else EndReason.FINISHED
            passes.append(
                PassOutcome(
                    grant, pieces, reason, 1, t_ns - S // 4, t_ns, end, beam.gantry_angle_deg, "position" if tripped else ""
                )
            )
            t_ns = end
            if tripped:
                return tuple(passes), t_ns
    return tuple(passes), t_ns


def row_pieces(grant, true, t_ns, cut_every, rng, spill):
    n = true.size
    row = np.repeat(np.arange(n), 1 + (np.arange(n) % cut_every == cut_every - 1))
    pieces = np.zeros(row.size, PIECE_DTYPE)
    pieces["row"], pieces["spot_index"], pieces["spill"] = row, grant.spot_index[row], spill
    pieces["x_um"] = grant.x_um[row] + np.rint(rng.normal(0, 120, row.size))
    pieces["y_um"] = grant.y_um[row] + np.rint(rng.normal(0, 120, row.size))
    pieces["sigma_x_um"], pieces["sigma_y_um"] = 2900 + rng.integers(-40, 40, row.size), 3000
    counts = true[row]
    first = np.concatenate([row[1:] == row[:-1], [False]]) if row.size else np.zeros(0, bool)
    second = np.concatenate([[False], first[:-1]]) if row.size else first
    counts = np.where(first, counts // 3, np.where(second, counts - counts // 3, counts))
    pieces["counts1"] = counts
    pieces["counts2"] = np.rint(counts * COUNTS2_PER_MU / COUNTS_PER_MU * (1 + rng.normal(0, 0.003, row.size)))
    duration = counts * 4000
    ends = t_ns + np.cumsum(duration + 50_000)
    pieces["t_start_ns"], pieces["t_end_ns"] = ends - duration, ends
    pieces["flags"] = np.where(
        first, int(PieceFlag.CUT_SPILL | PieceFlag.GATE_OPEN), int(PieceFlag.ROW_ENDED | PieceFlag.GATE_OPEN)
    )
    return pieces


def make_fraction(
    beams=None, *, stop_after=None, simulated=True, overrides=False, seed=1, cut_every=7, counts_per=COUNTS_PER_MU
):
    beams = beams or (make_beam(1), make_beam(4, seed=3, angle=270.0))
    outcomes, t_ns = [], 20 * S
    motion = [(0, 0.0)]
    for number, beam in enumerate(beams):
        last = number == len(beams) - 1
        begin = t_ns
        motion += [(t_ns, motion[-1][1]), (t_ns + 40 * S, beam.gantry_angle_deg)]
        passes, t_ns = deliver(
            beam,
            t_ns=t_ns + 60 * S,
            stop_after=stop_after if last else None,
            seed=seed,
            cut_every=cut_every,
            counts_per=counts_per,
        )
        partial = last and stop_after is not None
        n = len(beam.layers)
        ratio = COUNTS2_PER_MU / COUNTS_PER_MU
        outcomes.append(
            BeamOutcome(
                beam,
                passes,
                np.full(n, counts_per),
                np.full(n, counts_per * ratio),
                Status.PARTIAL if partial else Status.COMPLETE,
                Termination.MACHINE if partial else Termination.NORMAL,
                "position interlock" if partial else "",
                beam.gantry_angle_deg + 0.02,
                {
                    "lateral_mm": 1.01,
                    "longitudinal_mm": 2.0,
                    "vertical_mm": -30.02,
                    "angle_deg": 0.0,
                    "pitch_deg": 0.1,
                    "roll_deg": -0.1,
                },
                200.1,
                ("RS30",),
                begin,
                t_ns,
                90.0,
            )
        )
        t_ns += 5 * S
    partial = stop_after is not None
    trip = Interlock(t_ns - 5 * S, "position", "spot 2.4 mm from plan, limit 2 mm", "G1-delivery-unit")
    follow = Interlock(t_ns - 5 * S + 10**6, "request", "request pulse dropped", "G1-safety", first_out=False)
    override = Override(5 * S, "machine", "machine QA on another room", "A. Physicist", "plan TR4, room G1")
    return FractionOutcome(
        plan=make_plan(beams),
        fraction=1,
        machine=Machine("asan", "G1", "G1", simulated, "Example hospital", software_version="0.1.0"),
        seed=7,
        started_utc=STARTED,
        t_origin_ns=0,
        beams=tuple(outcomes),
        status=Status.PARTIAL if partial else Status.COMPLETE,
        termination=Termination.MACHINE if partial else Termination.NORMAL,
        reason="position interlock" if partial else "",
        research=overrides,
        operator="scripted operator",
        motion=(*motion, (t_ns, motion[-1][1])),
        spills=tuple(Span(80 * S + k * 4 * S, 80 * S + k * 4 * S + 3 * S, str(k + 1)) for k in range(5)),
        holds=(Span(83 * S, 84 * S, "spill"), Span(87 * S, 88 * S, "spill")),
        states=(Span(0, 80 * S, "preparatory.positioning"), Span(80 * S, t_ns, "irradiating.beam_on")),
        interlocks=(trip, follow) if partial else (),
        overrides=(override,) if overrides else (),
        loop_lag=LoopLag(0.1, 1.5, 3.0),
        wall_s=0.4,
        run_id=5,
    )
