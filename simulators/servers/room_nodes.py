"""The Modbus nodes of one room: motion line (drives, load encoder, couch, nozzle) and safety line (remote I/O, permit relay).

Register by register as in docs/wires.md, with tables of the plant's own. Not responsible for answering (`modbus`) or for what
the plant does with a command.
"""

from __future__ import annotations

from collections.abc import Sequence

from drivers.wire.framing import ILLEGAL_ADDRESS
from simulators.plant.couch import Couch
from simulators.plant.drive import PROFILE_POSITION
from simulators.plant.gantry import GantryRing
from simulators.plant.nozzle import Nozzle
from simulators.plant.room import RoomPlant
from simulators.servers.modbus_node import CommandedNode, ModbusNode, ModbusRefusal, Numbers, word16, words32

DRIVE, ENCODER, COUCH, NOZZLE, SAFETY_IO, PERMIT_RELAY = 0xD1, 0xE1, 0xC1, 0x41, 0x51, 0x52
SAFETY_CYCLE_S = 0.01
NO_CEILING = 0x7FFF_FFFF  # shown where the second dose unit has none: whoever compares finds it above everything
UNUSED = (0,) * 4  # registers of the permit relay between what is written and what it is
MICRO = 1000.0  # um per mm, mdeg per deg


class DriveNode(CommandedNode):
    """One drive of the ring: registers 14 to 23 written, 32 to 43 read."""

    def __init__(self, ring: GantryRing, drive: int) -> None:
        self._ring = ring
        self._drive = ring.drives[drive]
        self._i = drive
        initial = (
            0,
            PROFILE_POSITION,
            *words32(ring.targets_mdeg[drive]),
            *words32(ring.profile_speed_mdeg_s[drive]),
            *words32(ring.profile_acceleration_mdeg_s2[drive]),
        )
        super().__init__(ring.kernel, DRIVE, self._drive.name, ring.truth.cycle_s, initial, (18, 20, 22))
        self.add_area(32, 12, self._status)

    def heard(self) -> None:
        self._ring.polled(self._i)

    def accept(self, register: int, end: int) -> None:
        if not (register <= 16 and end == 17 and self._drive.only_stops(self.word(16))):
            self.require_young(register)
        if register <= 17 < end and self.word(17) != PROFILE_POSITION:
            raise ValueError("only profile position mode")
        if end > 20 and (self.pair(20) <= 0 or self.pair(22) <= 0):
            raise ValueError("profile velocity and acceleration must be above 0")
        ring, i = self._ring, self._i
        ring.targets_mdeg[i] = self.pair(18)
        ring.profile_speed_mdeg_s[i] = self.pair(20)
        ring.profile_acceleration_mdeg_s2[i] = self.pair(22)
        if register <= 16 < end:  # last: one frame may carry a target and its start
            self._drive.write_controlword(self.word(16))

    def _status(self) -> Sequence[int]:
        ring, drive, i = self._ring, self._drive, self._i
        now = ring.kernel.now_ns
        return (
            drive.statusword,
            drive.mode,
            *words32(ring.motor_encoder_mdeg(i, now)),
            *words32(ring.motor_speed_mdeg_s(now)),
            word16(ring.torque_permille(i, now)),
            drive.error_code,
            ring.safety_word(i),
            self.counter,
            *self.cycles,
        )


class LoadEncoderNode(ModbusNode):
    """The load encoder on the ring: registers 32 to 41 read, nothing written."""

    def __init__(self, ring: GantryRing) -> None:
        self._ring = ring
        super().__init__(ring.kernel, ENCODER, ring.encoders.load.name, ring.truth.cycle_s, 16, ())
        self.add_area(32, 10, self._status)

    def _status(self) -> Sequence[int]:
        ring = self._ring
        valid = int(ring.encoders.load.valid)
        return (valid, 0, *words32(ring.load_encoder_mdeg(ring.kernel.now_ns)), 0, 0, 0, 0, 0, self.counter)


class CouchNode(CommandedNode):
    """The couch: token 14, controlword 16, targets 18 to 29 written; 32 to 49 read."""

    def __init__(self, couch: Couch) -> None:
        self._couch = couch
        targets = [word for x in couch.targets for word in words32(round(x * MICRO))]
        super().__init__(couch.kernel, COUCH, couch.device, couch.truth.cycle_s, (0, 0, *targets), (18, 20, 22, 24, 26, 28))
        self.add_area(32, 18, self._status)

    def heard(self) -> None:
        self._couch.polled()

    def accept(self, register: int, end: int) -> None:
        if register == 17:
            raise ModbusRefusal(ILLEGAL_ADDRESS)
        couch = self._couch
        if not (register <= 16 and end == 17 and couch.drive.only_stops(self.word(16))):
            self.require_young(register)
        if end > 18:
            couch.targets[:] = [self.pair(at) / MICRO for at in range(18, 30, 2)]
        if register <= 16 < end:
            couch.drive.write_controlword(self.word(16))

    def _status(self) -> Sequence[int]:
        couch = self._couch
        actuals = (couch.encoder(couch.kernel.now_ns) * MICRO).round().tolist()
        return (
            couch.drive.statusword,
            couch.drive.error_code,
            *(word for x in actuals for word in words32(int(x))),
            int(couch.brake.feedback_applied),
            self.counter,
            *self.cycles,
        )


class NozzleNode(CommandedNode):
    """The nozzle: token 14, mask 16, snout 18-19, ripple filter 20 written; 32 to 43 read."""

    def __init__(self, nozzle: Nozzle) -> None:
        self._nozzle = nozzle
        initial = (0, 0, *words32(round(nozzle.snout_target_mm * MICRO)), 0)
        super().__init__(nozzle.kernel, NOZZLE, nozzle.device, nozzle.truth.cycle_s, initial, (18,))
        self.add_area(32, 12, self._status)

    def heard(self) -> None:
        self._nozzle.polled()

    def accept(self, register: int, end: int) -> None:
        if register == 17:
            raise ModbusRefusal(ILLEGAL_ADDRESS)
        nozzle = self._nozzle
        self.require_young(register)
        if register <= 20 < end and self.word(20) > 1:
            raise ValueError("the ripple filter is in (1) or out (0)")
        if register <= 16 < end and self.word(16) >> len(nozzle.shifters):
            raise ValueError("a bit without a range shifter")
        if register <= 18 < end:
            nozzle.set_snout(self.pair(18) / MICRO)
        if register <= 16 < end:
            nozzle.set_mask(self.word(16))
        if register <= 20 < end:
            nozzle.set_ripple_filter(bool(self.word(20)))

    def _status(self) -> Sequence[int]:
        nozzle = self._nozzle
        return (
            nozzle.status,
            nozzle.mask,
            *words32(round(nozzle.snout_encoder_mm(nozzle.kernel.now_ns) * MICRO)),
            int(nozzle.ripple_filter.seen_inside),
            nozzle.barrier_mask,
            0,
            0,
            0,
            self.counter,
            *self.cycles,
        )


class SafetyNode(ModbusNode):
    """Remote I/O of the room: 8 to 80 read; heartbeat, pulse, token, presets, armed, plan and beam at 127 to 137 written."""

    _STATE = "HHHHH"
    _INPUTS = _STATE + "HiiHHQQiiiiHH"
    _ALL = _INPUTS + "QiHQiH"
    _EVERY = _ALL + "HHiiiiHHHHHHiiiiHii"

    def __init__(self, room: RoomPlant) -> None:
        self._room = room
        super().__init__(room.kernel, SAFETY_IO, f"{room.name}-safety", SAFETY_CYCLE_S, 127, [0] * 11, (130, 132, 135))
        every, whole, inputs = (Numbers(form).words for form in (self._EVERY, self._ALL, self._INPUTS))
        self.add_area(8, 73, lambda: every(*self._state(), *self._inputs(), *self._granted(), *self._guards()))
        self.add_area(8, 44, lambda: whole(*self._state(), *self._inputs(), *self._granted()))
        self.add_area(8, 30, lambda: inputs(*self._state(), *self._inputs()))  # all that the controller asks for
        self.add_area(8, 5, self._state)  # all that is asked for with most pulses

    def accept(self, register: int, end: int) -> None:
        if register <= 134 < end and self.word(134) > 1:
            raise ValueError("armed is 0 or 1")
        chain = self._room.chain
        if end > 129:
            chain.select(self.word(129), self.pair(130), self.pair(132), bool(self.word(134)), self.pair(135), self.word(137))
        if register <= 128 < end:
            chain.pulse_r(self.word(128))

    def _state(self) -> tuple[int, int, int, int, int]:
        """Counter, room bits, contributions, elements of chain A, state of the search."""
        room = self._room
        access, chain = room.access, room.chain
        search_ok, estop_ok = chain.search_ok.value, chain.estop_ok.value
        return (
            self.counter,
            access.contact_a
            | access.contact_b << 1
            | search_ok << 2
            | estop_ok << 3
            | access.lamp_lit << 4
            | room.stopper_closed << 5
            | room.beam_present << 6,
            chain.permit_a.value
            | chain.permit_b.value << 1
            | chain.permit_r.value << 2
            | chain.beam_enable.value << 3
            | chain.motion_permit.value << 4,
            estop_ok
            | (chain.door_ok.value and search_ok) << 1
            | chain.dose1_ok.value << 2
            | chain.dose2_ok.value << 3
            | chain.standstill_ok.value << 4
            | chain.torque_off_ok.value << 5
            | chain.quench_ok.value << 6
            | chain.beam_off_ok.value << 7
            | chain.collision_ok.value << 8,
            int(access.state),
        )

    def _inputs(self) -> tuple[int, ...]:
        """Encoders, counts and errors of the monitors, deviation of the magnets, species, health of the monitors, key."""
        room = self._room
        ring, unit, unit2, magnets = room.gantry, room.unit, room.unit2, room.magnets
        now = room.kernel.now_ns
        health = 0
        if unit is not None:
            health |= (unit.monitor.hv_good | unit.monitor.fresh << 1) * unit.powered
        if unit2 is not None:
            health |= (unit2.monitor.hv_good << 2 | unit2.monitor.fresh << 3) * unit2.powered
        return (
            0,
            ring.load_encoder2_mdeg(now),
            ring.motor_encoder_mdeg(0, now),
            room.chain.standstill_ok.value,
            0,
            unit.field_counts1() if unit is not None else 0,
            unit2.total if unit2 is not None else 0,
            unit.position_error_um() if unit is not None else 0,
            magnets.deviation_ppm() if magnets is not None else 0,
            room.measured_species(),
            unit.signal_permille() if unit is not None else 1000,
            health,
            room.access.service_key,
        )

    def _granted(self) -> tuple[int, ...]:
        """What the delivery unit has been granted."""
        unit = self._room.unit
        if unit is None:
            return (0,) * 6
        granted = unit.granted()
        return (
            granted.field1,
            granted.row1,
            granted.layer & 0xFFFF,
            granted.layer1,
            granted.plan_hash,
            granted.beam & 0xFFFF,
        )

    def _guards(self) -> tuple[int, ...]:
        """Beam-off elements, hard-wired positions and contacts, services, and the ceilings of the second dose unit."""
        room = self._room
        unit2 = room.unit2
        field, spot = (unit2.ceilings if unit2 is not None else None) or (NO_CEILING, NO_CEILING)
        off, nozzle, services, now = room.chain.beam_off, room.nozzle, room.services, room.kernel.now_ns
        ripple = nozzle.ripple_filter
        lateral_mm, longitudinal_mm, vertical_mm, *_ = room.couch.position(now).tolist()
        return (
            int(off.asked) | int(off.confirmed) << 8,  # of a flag `|` takes 2 us
            off.level,
            off.residual_counts,
            round(lateral_mm * MICRO),
            round(longitudinal_mm * MICRO),
            round(vertical_mm * MICRO),
            nozzle.mask | ripple.seen_inside << 15,
            nozzle.barrier_mask | (ripple.inside and not ripple.moving) << 15,
            services.collision.value | services.vacuum_good << 1 | services.power_good << 2,
            *services.flows_permille,
            *services.coil_margins_mk(),
            round(services.area_usv_h() * 100.0),
            unit2.state if unit2 is not None and unit2.powered else 0,
            min(field, NO_CEILING),
            min(spot, NO_CEILING),
        )


class PermitRelayNode(ModbusNode):
    """Relays of the interlock system: pulse, boot id, first-out, evidence, pulse and row of motion at 16 to 26 written.

    The contacts of permit relay and motion relay are read at 32 and 33, and at 27 which of them two writers hold open.
    """

    def __init__(self, room: RoomPlant) -> None:
        self._chain = room.chain
        super().__init__(room.kernel, PERMIT_RELAY, f"{room.name}-permit-relay", SAFETY_CYCLE_S, 16, [0] * 11, (20, 22))
        self.add_area(16, 18, self._status)

    def accept(self, register: int, end: int) -> None:
        source = self.word(17) if register <= 17 < end else 0  # a frame without a boot id does not say whose it is
        if register == 16:
            self._chain.pulse_b(self.word(16), source)
        if register <= 25 < end:
            self._chain.pulse_motion(self.word(25), source)

    def _status(self) -> Sequence[int]:
        beam, motion = self._chain.contested
        return (
            *self._block,
            beam | motion << 1,
            *UNUSED,
            int(self._chain.permit_b.value),
            int(self._chain.motion_permit.value),
        )


def motion_nodes(room: RoomPlant) -> dict[int, ModbusNode]:
    """Nodes of the line `ROOM-motion`; a fixed room has couch and nozzle only."""
    nodes: dict[int, ModbusNode] = {10: CouchNode(room.couch), 20: NozzleNode(room.nozzle)}
    if isinstance(room.gantry, GantryRing):
        ring = room.gantry
        nodes = {1: DriveNode(ring, 0), 2: DriveNode(ring, 1), 3: LoadEncoderNode(ring), **nodes}
    return nodes


def safety_nodes(room: RoomPlant) -> dict[int, ModbusNode]:
    """Nodes of the line `ROOM-safety`: remote I/O and the permit relay."""
    return {1: SafetyNode(room), 2: PermitRelayNode(room)}
