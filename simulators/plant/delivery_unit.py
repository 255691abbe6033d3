"""The delivery unit of one room: takes grants, delivers them in hardware time, holds, trips, keeps results and a dose
memory.

An FPGA in reality. A grant is received, judged and echoed (`submit`), begun by its CRC (`start`), and delivered in
uninterrupted stretches (`timeline`). A stretch ends when its rows are done, the fill is used up, the hardware finds
something (`unit_checks`), or something happens meanwhile: gate, controller, energy, permit, a fault. Then the arrays
are truncated at the instant at which the last ion arrives, results and counters are written, and the unit finishes,
holds, ends the grant early, or latches.

Not responsible for how the beam is made (`synchrotron`), nor for what a plan wanted: it delivers what was granted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulators.plant import timeline, unit_checks
from simulators.plant.chambers import Monitor, StripMonitor
from simulators.plant.gate_input import GateInput
from simulators.plant.grants import GrantMessage, Int32s, Refusal, decode_grant
from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.machine_log import GrantRun, MachineLog
from simulators.plant.magnets import BeamlineMagnets
from simulators.plant.scanner import Scanner
from simulators.plant.second_dose_unit import SecondDoseUnitPlant
from simulators.plant.switchyard import Switchyard
from simulators.plant.synchrotron import Synchrotron
from simulators.plant.truth import RoomTruth
from simulators.plant.unit_granted import GrantedTotals
from simulators.plant.unit_judge import holds, judge, mismatch
from simulators.plant.unit_map import LoadedMap
from simulators.plant.unit_memory import UnitMemory
from simulators.plant.unit_readings import UnitReadings
from simulators.plant.unit_run import Beamline, Progress, Run, accepted_data, pieces_of, prepare, segment_data
from simulators.plant.unit_terms import NOT_LATCHING, Hold, Reason, UnitState, cut_flag, ended_flag

GRANT_AGE_NS = 2_000_000_000
PROGRESS_NS = 100_000_000
STRAY_COUNTS_MAX = 20


class ChainLines(Protocol):
    """The hard-wired lines this unit reads or drives."""

    beam_enable: Line
    dose1_ok: Line
    dose2_ok: Line


class DeliveryUnitPlant(UnitReadings):
    """The unit of one room.

    Attributes:
        monitor, strips: its chambers, with their faults.
        gate: the hard-wired gate; open lets beam through (`gate_input`).
        off: asks the chain's elements to take the beam away; called when what usually does it does not (`beam_off`).
        wrap_bits: fault: the shown totals of monitor 1 wrap at this many bits (0: never).
        memory: results ring, totals, latch.
    """

    def __init__(
        self,
        kernel: Kernel,
        room: RoomTruth,
        chain: ChainLines,
        ring: Synchrotron,
        switchyard: Switchyard,
        magnets: BeamlineMagnets,
        scanner: Scanner,
        unit2: SecondDoseUnitPlant,
        angle_deg: Callable[[int], float],
        log: MachineLog,
    ) -> None:
        self.room = room.name
        self.identity = room.unit.identity
        self.boot_id = room.unit.boot_id
        self.state = UnitState.IDLE
        self.reason = Reason.NONE
        self.hold = Hold.NONE
        self.powered = True
        self.latched = False
        self.controller_gate = True
        self.echo: tuple[int, int, int, int] = (0, 0, 0, 0)
        self.map: LoadedMap | None = None
        self.wrap_bits = 0
        self.off: Callable[[], None] = lambda: None
        chambers = room.chambers
        self.monitor = Monitor(
            chambers.gap1_mm, chambers.charge_per_count_fc, chambers.charge_per_count_proton_fc, chambers.gain1_rel
        )
        self.strips = StripMonitor(chambers, room.scanner.sad_x_mm, room.scanner.sad_y_mm)
        self.memory = UnitMemory(self.boot_id)
        self.gate = GateInput(kernel, f"{room.name}.gate")
        self._kernel = kernel
        self._truth = room
        self._chain = chain
        self._ring = ring
        self._switchyard = switchyard
        self._magnets = magnets
        self._unit2 = unit2
        self._log = log
        self._name = f"{room.name}-delivery-unit"
        self._line = Beamline(
            kernel, self._name, room, ring, magnets, scanner, self.monitor, unit2.monitor, self.strips, angle_deg
        )
        self._open: GrantMessage | None = None
        self._grant_map: LoadedMap | None = None
        self._received_ns = 0
        self._started = False
        self._next_row = 0
        self._done1 = 0  # counts of the open grant
        self._done2 = 0
        self._stretches = 0
        self._paused = False
        self._log_entry: GrantRun | None = None
        self._held_ns = 0
        self._run: Run | None = None
        self._end_timer: Timer | None = None
        self._stop_reason = Reason.NONE
        self._stop_hold = Hold.NONE
        self._stopped_ns = -1
        self._progress: Timer | None = None
        self._closing = False
        self._field1 = 0
        self._granted = GrantedTotals()
        self._stray1 = 0
        self._beam_goes_on = False  # a stretch was cut only to compute it anew: the beam itself did not stop
        self._worst_mm = 0.0
        self._signal_permille = 1000
        self._scan_mm = (0.0, 0.0)
        self._watchers: list[Callable[[str], None]] = []
        unit2.on_field = self._zero_field
        unit2.other_healthy = lambda: self.monitor.healthy(0.02)
        ring.watch(self._reconsider)
        switchyard.watch(self._reconsider)
        magnets.watch(self._reconsider)
        chain.beam_enable.watch(lambda _t, _v: self._reconsider())
        chain.dose2_ok.watch(lambda _t, _v: self._reconsider())
        self.gate.watch(lambda _t, _v: self._reconsider())
        self.monitor.watch(self._monitor_changed)
        unit2.monitor.watch(self._monitor_changed)
        self._drive_line()

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Call with ``"status"``, ``"echo"``, ``"latch"`` or ``"power"`` when that changed."""
        self._watchers.append(watcher)

    # --- commands -----------------------------------------------------------------------------------------------

    def load_map(self, values: NDArray[np.float64]) -> None:
        """Load the scanner and monitor map of one energy; an open grant keeps the map it was accepted with.

        Raises:
            ValueError: not 16 finite numbers, or not usable.
        """
        self.map = LoadedMap.of(values)

    def submit(self, words: Int32s) -> None:
        """Receive a grant: accept it or refuse it, and echo which."""
        if not self.powered:
            return
        grant = decode_grant(words)
        if isinstance(grant, Refusal):
            crc = int(words[-1]) if words.size else 0
            self._answer(int(words[2]) if words.size > 2 else 0, crc, grant)
            return
        refusal = judge(
            grant,
            boot_id=self.boot_id,
            last_grant_id=self.memory.last_grant_id,
            busy=self._open is not None,
            latched=self.latched,
            ring=self._ring,
            loaded=self.map,
            unit=self._truth.unit,
        )
        if refusal is Refusal.NONE:
            self._open = grant
            self._grant_map = self.map
            self._received_ns = self._kernel.now_ns
            self._started = False
            self._next_row = self._done1 = self._done2 = self._stretches = 0
            self._paused = False
            self._worst_mm = 0.0
            self._signal_permille = 1000
            self.reason = Reason.NONE
            self.hold = Hold.NONE
            self.state = UnitState.GRANTED
            self.memory.open_grant(grant.grant_id, self.boot_id)
            self._granted.accept(grant)
            self._unit2.strobe()
            self._kernel.emit(self._name, "grant.accepted", **accepted_data(grant, self.room))
        self._answer(grant.grant_id, grant.crc, refusal)

    def start(self, grant_id: int, crc: int) -> None:
        """Begin the open grant; refusals are echoed. A grant older than 2 s is dropped unused."""
        grant = self._open
        if not self.powered or self._started:
            return
        if grant is None or grant.grant_id != grant_id:
            self._answer(grant_id, crc, Refusal.ID)
        elif crc != grant.crc:
            self._answer(grant_id, crc, Refusal.CRC)
        elif self._kernel.now_ns - self._received_ns > GRANT_AGE_NS:
            self._answer(grant_id, crc, Refusal.AGE)
            self._end(Reason.ABORTED)
        elif not self._chain.beam_enable.value or not self._route_ours:
            self._answer(grant_id, crc, Refusal.NOT_PERMITTED)
        elif mismatch(grant, self._ring, self._magnets):
            self._answer(grant_id, crc, Refusal.ENERGY)
        else:
            self._started = True
            self._log_entry = GrantRun(self.room, grant.beam, grant.grant_id, self._kernel.now_ns)
            self._log.grants.append(self._log_entry)
            self._held_ns = self._kernel.now_ns
            self.state = UnitState.HELD
            self.echo = (grant_id, crc, 1, 0)  # an earlier refused start must not stand
            self._post("echo")
            self._ring.want_beam(self._name, True)
            self._reconsider()

    def set_controller_gate(self, open_: bool) -> None:
        """The controller closes the gate or withdraws that; opening also acknowledges a pause limit."""
        self.controller_gate = open_
        if open_:
            self._paused = False
        self._reconsider()

    def abort(self) -> None:
        """End the open grant now."""
        if self._open is not None and self.powered:
            self._finish_by(Reason.ABORTED)

    def reset(self, boot_id: int) -> None:
        """Clear the latch; it stays for another boot id, or while a dose channel is not healthy."""
        healthy = self.monitor.hv_good and self.monitor.fresh and self._chain.dose2_ok.value
        if self.latched and healthy and boot_id == self.boot_id:
            self.latched = False
            self._stray1 = 0
            self.state = UnitState.IDLE
            self.reason = Reason.NONE
            self._drive_line()
            self._post("status")

    def power_cycle(self, off_s: float = 0.5) -> None:
        """Lose power for a while: the line falls, the dose memory stays; results, map and open grant are lost; new boot id."""
        self.powered = False
        self._post("power")  # before anything else changes: what was seen last stays to be seen
        self._drive_line()
        if self._run is not None:
            self._stop(Reason.PERMIT, Hold.NONE)
        elif self._open is not None:
            self._end(Reason.PERMIT)
        self._kernel.after(round(off_s * 1e9), self._power_up)

    def leak(self, counts1: int, counts2: int) -> None:
        """Fault: charge arrives although no spot is open; more than 20 counts since the last reset latch the unit.

        Without power nothing counts it.
        """
        if not self.powered:
            return
        self.memory.add(counts1, counts2)
        self._field1 += counts1
        self._unit2.add_stray(counts2)
        self._kernel.emit(self._name, "stray", room=self.room, counts1=counts1)
        self._stray1 += counts1
        if self._stray1 > STRAY_COUNTS_MAX:
            if self._open is not None:
                self._finish_by(Reason.STRAY)
            else:
                self._latch(Reason.STRAY)
        self._post("status")

    # --- judging ------------------------------------------------------------------------------------------------

    def _answer(self, grant_id: int, crc: int, refusal: Refusal) -> None:
        self.echo = (grant_id, crc, int(refusal is Refusal.NONE), int(refusal))
        if refusal is not Refusal.NONE:
            self._kernel.emit(self._name, "grant.refused", room=self.room, grant_id=grant_id, code=int(refusal))
        self._post("echo")
        self._post("status")

    @property
    def _route_ours(self) -> bool:
        return self._switchyard.route in self._truth.routes

    def _reason_to_end(self, grant: GrantMessage) -> Reason:
        """What ends a started grant at once, NONE when nothing does."""
        if not self.powered:
            return Reason.PERMIT
        if not self.monitor.hv_good or not self._unit2.monitor.hv_good:
            return Reason.DEAD
        if not self._chain.dose2_ok.value:
            return Reason.SECOND_UNIT
        if self._magnets.off_setpoint:
            return Reason.SUPPLY
        if not self._chain.beam_enable.value:
            return Reason.PERMIT
        if mismatch(grant, self._ring, self._magnets) or not self._route_ours:
            return Reason.TOKEN
        return Reason.NONE

    # --- delivering ---------------------------------------------------------------------------------------------

    def _reconsider(self) -> None:
        """Something changed: begin, hold, go on or end."""
        grant = self._open
        if grant is None or not self._started or self._closing:
            return
        reason = self._reason_to_end(grant)
        if reason is not Reason.NONE:
            self._finish_by(reason)
            return
        hold = holds(self._ring, self._magnets, self.gate.value, self.controller_gate, self._paused)
        if self._run is not None:
            if hold:
                self._stop(Reason.NONE, hold)
            return
        if hold:
            self._mark_hold(hold)
        elif not self._beam_goes_on and not self._live:
            self._finish_by(Reason.DEAD)  # never begin on a monitor whose samples stand still
        else:
            self._begin(grant)

    def _mark_hold(self, hold: Hold) -> None:
        self._beam_goes_on = False
        if hold != self.hold or self.state is not UnitState.HELD:
            self._note_controller_hold()
            self.hold = hold
            self.state = UnitState.HELD
            self._held_ns = self._kernel.now_ns
            self._post("status")

    def _note_controller_hold(self) -> None:
        """Time held by nothing but the controller (or a pause it has not acknowledged) is not the machine's."""
        if self._log_entry is not None and self.hold and not self.hold & ~(Hold.CONTROLLER | Hold.PAUSE):
            self._log_entry.controller_hold_ns += self._kernel.now_ns - self._held_ns

    def _begin(self, grant: GrantMessage) -> None:
        if self._grant_map is None:
            return
        cause = "goes on" if self._beam_goes_on else "grant"
        self._beam_goes_on = False
        self._note_controller_hold()
        self._stretches += 1
        progress = Progress(self._next_row, self._done1, self._done2, self._stretches, self._scan_mm)
        run = prepare(self._line, grant, self._grant_map, progress, lambda: self._flying()[3])
        self._run = run
        self._signal_permille = run.signal_permille
        self._stop_reason, self._stop_hold, self._stopped_ns = Reason.NONE, Hold.NONE, -1
        self.state = UnitState.DELIVERING
        self.hold = Hold.NONE
        if self._log_entry is not None and self._log_entry.begun_ns < 0:
            self._log_entry.begun_ns = self._kernel.now_ns
        end_ns = run.stretch.end_ns
        if run.finding is not None:
            end_ns = min(end_ns, run.finding.t_ns + self._ring.cutoff_ns())
            if self._ring.uncut and not run.finding.pause:
                self._kernel.at(run.finding.t_ns, lambda _t: self._demand_off(run))
        self._end_timer = self._kernel.at(end_ns, self._close)
        self._progress = self._kernel.after(PROGRESS_NS, self._tick)
        self._kernel.emit(self._name, "beam.on", room=self.room, cause=cause, grant_id=grant.grant_id)
        s = run.stretch
        self._unit2.begin(s.row, s.t_start_ns, s.t_end_ns, s.counts2, lambda: self._flying()[2])
        self._post("status")

    def _finish_by(self, reason: Reason) -> None:
        """End the open grant for a reason, after the last ion when beam is on."""
        if self._run is not None:
            self._stop(reason, Hold.NONE)
        else:
            self._end(reason)

    def _stop(self, reason: Reason, hold: Hold) -> None:
        """Beam off: the stretch ends when the last ion has arrived. The first reason wins; a reason outranks a hold."""
        if self._run is None or self._end_timer is None:
            return
        now = self._kernel.now_ns
        if self._stop_reason is Reason.NONE:
            self._stop_reason = reason
        self._stop_hold = self._stop_hold or hold
        if self._stopped_ns >= 0:
            return
        self._stopped_ns = now
        if self._ring.uncut:
            self.off()
        last_ns = now + (self._ring.cutoff_ns() if self._run.stretch.beam_at(now) else 0)
        if last_ns < self._end_timer.t_ns:
            self._end_timer.cancel()
            self._end_timer = self._kernel.at(last_ns, self._close)

    def lose_beam(self) -> None:
        """No more ions come, whatever was asked: the ring was dumped, or the stopper is in."""
        if self._run is None or self._end_timer is None:
            return
        if self._stopped_ns < 0:
            self._stop(Reason.PERMIT, Hold.NONE)
        self._end_timer.cancel()
        self._end_timer = self._kernel.at(self._kernel.now_ns, self._close)

    def _demand_off(self, run: Run) -> None:
        if self._run is run and self._stopped_ns < 0:
            self.off()

    def _close(self, t_ns: int) -> None:
        """The stretch is over: truncate, record, tell, and decide how it goes on."""
        run, grant = self._run, self._open
        if run is None or grant is None:
            return
        done = run.stretch.cut(t_ns)
        reason, hold, pause = self._verdict(run, done, t_ns)
        self._next_row += int(np.count_nonzero(done.ended))
        finished = self._next_row == grant.rows
        flag = ended_flag(reason) if reason is not Reason.NONE else cut_flag(hold)
        pieces = pieces_of(self._line, run, done, flag)
        error = unit_checks.position_error_mm(done, run.expected)
        self._worst_mm = max(self._worst_mm, float(error[done.t_end_ns > done.t_start_ns].max(initial=0.0)))
        counts1 = int(done.counts1.sum())
        self._done1 += counts1
        self._done2 += int(done.counts2.sum())
        self._field1 += counts1
        self.memory.record(pieces)
        if done.size:
            last = int(done.row[-1])
            self._scan_mm = (float(grant.x_mm[last]), float(grant.y_mm[last]))
        self._closing = True
        self._run = None
        for timer in (self._end_timer, self._progress):
            if timer is not None:
                timer.cancel()
        self._unit2.end(done.row, done.counts2)
        self._kernel.emit(self._name, "delivery.segment", **segment_data(run, done, self.room))
        cause = reason.name if reason is not Reason.NONE else (hold.name or "rows done")
        self._kernel.emit(self._name, "beam.off", room=self.room, cause=cause, grant_id=grant.grant_id)
        if reason is not Reason.NONE or finished:
            self._ring.want_beam(self._name, False)
        self._ring.end_extraction(float(done.ions.sum()))
        self._closing = False
        if reason is not Reason.NONE or finished:
            self._end(reason if reason is not Reason.NONE else Reason.FINISHED)
            return
        self._paused = self._paused or pause
        self._held_ns = self._kernel.now_ns
        self._reconsider()

    def _verdict(self, run: Run, done: timeline.Stretch, t_ns: int) -> tuple[Reason, Hold, bool]:
        """Why the stretch ended: reason that ends the grant (or NONE), hold, and whether it was a pause limit."""
        finding = run.finding
        found = finding is not None and finding.t_ns <= t_ns and not 0 <= self._stopped_ns < finding.t_ns
        if found and finding is not None and not finding.pause:
            return finding.reason, Hold.NONE, False
        if self._stop_reason is not Reason.NONE:
            return self._stop_reason, Hold.NONE, False
        if found:
            return Reason.NONE, Hold.PAUSE, True
        if done.empty_ns >= 0 and not self._stop_hold:
            return Reason.NONE, Hold.SPILL, False
        return Reason.NONE, self._stop_hold, False

    def _end(self, reason: Reason) -> None:
        """The open grant is over."""
        grant = self._open
        if grant is None:
            return
        self._beam_goes_on = False
        self._note_controller_hold()
        self._granted.end(self._done1)
        if self._log_entry is not None:
            self._log_entry.ended_ns = self._kernel.now_ns
            self._log_entry = None
        self._ring.want_beam(self._name, False)
        self._open = None
        self._started = False
        self._paused = False
        self.hold = Hold.NONE
        self.reason = reason
        self.state = UnitState.FINISHED if reason is Reason.FINISHED else UnitState.ENDED_EARLY
        self._kernel.emit(
            self._name,
            "grant.ended",
            room=self.room,
            grant_id=grant.grant_id,
            boot_id=self.boot_id,
            reason=int(reason),
            rows_finished=self.memory.rows_finished,
            rows=grant.rows,
            counts1=self._done1,
            counts2=self._done2,
        )
        if reason not in NOT_LATCHING:
            self._latch(reason)
        self._post("latch")
        self._post("status")

    def _latch(self, reason: Reason) -> None:
        """Stay off until reset; the line to the chain falls."""
        self.latched = True
        self.state = UnitState.LATCHED
        self.reason = reason
        self._kernel.emit(self._name, "trip", room=self.room, element="dose 1", cause=reason.name)
        self._drive_line()

    def _drive_line(self) -> None:
        self._chain.dose1_ok.set(self.powered and not self.latched and self.monitor.hv_good)

    def _monitor_changed(self) -> None:
        """A chamber behaves otherwise from now on: go on with new arrays, unless that ends it."""
        self._drive_line()
        if not self._live:
            self._kernel.after(unit_checks.DEAD_NS, self._judge_dead)
        if self._run is not None and self._end_timer is not None and self._stopped_ns < 0:
            self._stopped_ns = self._kernel.now_ns
            self._beam_goes_on = True
            self._end_timer.cancel()
            self._end_timer = self._kernel.at(self._kernel.now_ns, self._close)

    def begin_life(self, boot_id: int) -> None:
        """A unit that has counted nothing yet, under another boot id."""
        self.boot_id, self.memory = boot_id, UnitMemory(boot_id)

    @property
    def _live(self) -> bool:
        """Whether both chambers give new samples."""
        return bool(self.monitor.fresh and self._unit2.monitor.fresh)

    def _judge_dead(self, _t_ns: int) -> None:
        if not self._live:
            self._stop(Reason.DEAD, Hold.NONE)

    def _power_up(self, _t_ns: int) -> None:
        self.boot_id += 1
        self.powered = True
        self._post("power")
        self.map = None
        self.state = UnitState.LATCHED if self.latched else UnitState.IDLE
        self.memory.lose_power()
        self._drive_line()
        self._post("latch")
        self._post("status")

    def _zero_field(self) -> None:
        self._field1 = 0
        self._granted.begin_field()

    def _tick(self, _t_ns: int) -> None:
        if self._run is not None:
            self._progress = self._kernel.after(PROGRESS_NS, self._tick)
            self._post("progress")

    def _post(self, what: str) -> None:
        for watcher in tuple(self._watchers):
            watcher(what)
