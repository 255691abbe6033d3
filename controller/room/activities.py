"""What the room does in each state: one coroutine per state, which returns the event to fire and never fires it.

Each proves something and leaves the proof in `Proofs`. A `CommandRejected` raised here means that the room declines before
beam; any other error ends the session. Not responsible for order, deadlines or cleaning up (`session`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.room.imaging import CorrectionLimits, align
from controller.room.permission import Permission
from controller.room.ports import (
    BeamEnded,
    BeamSharing,
    Confirm,
    Deliver,
    DeliveryContext,
    DeliveryResult,
    Job,
    OperatorPort,
    Tuner,
)
from controller.room.positioning import Placement, Positioner, Targets, targets_for
from controller.room.proofs import Proofs
from controller.room.states import State, Trigger
from controller.room.supervision import Reference, Timing, chain_elements_lost
from controller.room.watch import Watch
from controller.room.watchdog import Watchdog
from drivers.hal.capabilities import RoomDevices
from drivers.hal.errors import CommandRejected, CommunicationError, DeviceError
from drivers.hal.facility import Room as RoomBelief

ARMINGS_MAX = 5  # armed this often without beam-on: somebody should look (assumed)
POLL_S = 0.25
UNIT_CLOSE_S = 3.0  # the unit posts its status at least once a second

Emit = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Step:
    """What an activity found: fire this event, with these details for the event file."""

    trigger: Trigger
    why: str = ""


Activity = Callable[[], Awaitable[Step]]


class Activities:
    """The coroutines of one session, sharing its proofs."""

    def __init__(
        self,
        belief: RoomBelief,
        devices: RoomDevices,
        operator: OperatorPort,
        beam: BeamSharing,
        tuner: Tuner,
        deliver: Deliver,
        proofs: Proofs,
        permission: Permission,
        watch: Watch,
        timing: Timing,
        emit: Emit,
        job: Callable[[], Job],
        watchdog: Watchdog,
    ) -> None:
        self._belief = belief
        self._devices = devices
        self._operator = operator
        self._beam = beam
        self._tuner = tuner
        self._deliver = deliver
        self._proofs = proofs
        self._permission = permission
        self._watch = watch
        self._timing = timing
        self._emit = emit
        self._job = job
        self._watchdog = watchdog
        self._armings = 0
        self._self_tested = False
        self.positioner = Positioner(
            belief, devices.gantry, devices.couch, devices.snout, devices.interlock, self._ask_to_move_on
        )
        self.of_state: Mapping[State, tuple[str, ...]] = {
            State.STANDBY: ("identify",),
            State.IDENTIFIED: ("prepare",),
            State.POSITIONING: ("position",),
            State.IMAGING: ("image",),
            State.POSITIONED: ("secure",),
            State.SECURED: ("allocate",),
            State.ALLOCATED: ("begin_tuning",),
            State.TUNING: ("tune",),
            State.ARMED: ("await_beam_on",),
            State.BEAM_ON: ("irradiate",),
            State.HELD: ("irradiate",),
            State.INTERRUPTED: ("irradiate", "await_resume"),
        }

    def start(self, name: str) -> Awaitable[Step]:
        """The coroutine of that name."""
        activity: Activity = getattr(self, f"_{name}")
        return activity()

    # --- before the room is closed ----------------------------------------------------------------------------------

    async def _identify(self) -> Step:
        await self._confirm_identity()
        return Step(Trigger.IDENTIFY)

    async def _prepare(self) -> Step:
        proofs = self._proofs
        if proofs.proven_version != proofs.edit_version or not proofs.identified:
            await self._disarm()
            await self._confirm_identity()
        proofs.targets = targets_for(self._job().beam, self._belief)
        for note in proofs.targets.notes:
            self._emit("position.note", {"note": note})
        return Step(Trigger.POSITION)

    async def _confirm_identity(self) -> None:
        """The operator confirms this version; what is edited while the question stands is not confirmed by the answer."""
        proofs, job = self._proofs, self._job()
        version = proofs.edit_version
        proofs.void()
        await self._confirm(
            Confirm.IDENTIFY,
            {"plan_uid": job.plan_uid, "plan_label": job.plan_label, "patient_id": job.patient_id, "fraction": job.fraction},
        )
        proofs.proven_version = version
        proofs.identified = True

    async def _position(self) -> Step:
        self._proofs.moved = True
        self._proofs.placement = None
        placement = await self.positioner.drive_to(self._targets())
        self._placed(placement)
        return Step(Trigger.IMAGE)

    async def _image(self) -> Step:
        proofs = self._proofs
        proofs.accepted = False
        limits = CorrectionLimits.of(self._belief.couch)
        verified = await align(self._devices.imager, self.positioner, self._targets(), limits, self._report_image)
        proofs.image = verified
        proofs.targets = verified.targets
        self._placed(await self.positioner.verify(verified.targets))
        await self._confirm(
            Confirm.POSITIONED,
            {
                "residual": dict(verified.residual),
                "residual_limit": limits.residual(),
                "correction": dict(verified.correction),
                "correction_limit": limits.apply(),
                "images": verified.images,
            },
        )
        proofs.accepted = True
        return Step(Trigger.ACCEPT_POSITION)

    def _report_image(self, kind: str, correction: Mapping[str, float]) -> None:
        self._emit(kind, dict(correction))

    def _placed(self, placement: Placement) -> None:
        self._proofs.placement = placement
        self._emit("gantry.angle", {"angle_deg": placement.ring.angle.value})
        self._emit("couch", placement.couch_values())

    # --- from the closed room to armed ------------------------------------------------------------------------------

    async def _secure(self) -> Step:
        await self._disarm()
        while True:
            seen = await self._watch.refresh()
            if seen.access.secured:
                return Step(Trigger.SECURE)
            await asyncio.sleep(POLL_S)

    async def _allocate(self) -> Step:
        proofs = self._proofs
        if proofs.lease is None or not self._beam.holds(proofs.lease):
            proofs.route = ""
            proofs.lease = await self._beam.request(self._belief.name)
        targets = self._targets()
        route = self._belief.name if targets.port_deg is None else f"{self._belief.name}:{targets.port_deg:g}"
        if proofs.route != route:
            await self._devices.accelerator.select_route(route)
            proofs.route = route
        await self._watch.refresh()
        return Step(Trigger.ALLOCATE)

    async def _begin_tuning(self) -> Step:
        return Step(Trigger.TUNE)

    async def _tune(self) -> Step:
        proofs, devices = self._proofs, self._devices
        await self._disarm()
        self._armings += 1
        if self._armings > ARMINGS_MAX:
            raise CommandRejected(
                f"armed {ARMINGS_MAX} times without beam-on", code=4304, device=self._belief.name, hint="start again when ready"
            )
        targets = self._targets()
        self._check_unit()
        placement = await self.positioner.verify(targets, with_gantry=True)
        tuned = await self._tuner.tune(self._job(), devices, placement)
        if not self._self_tested:
            await devices.dose_monitor.self_test()
            self._self_tested = True
        # Loading starts a field: its total becomes zero. Never again once beam was given.
        await devices.dose_monitor.start_field(tuned.field_counts2_max, tuned.spot_counts2_max)
        proofs.ceilings_loaded = True
        proofs.tuned = tuned
        lease = proofs.lease
        if lease is None:
            raise CommandRejected("this room does not hold the beam token", code=4305, device=self._belief.name)
        placement = await self.positioner.verify(targets, with_gantry=True)
        self._placed(placement)
        self._watch.reference = Reference(placement.ring.angle.value, placement.couch_values())
        proofs.preset_sent = True
        job = self._job()
        await devices.access.preset(lease.token, targets.gantry_deg, tuned.species_token, True, job.plan_hash, job.beam.number)
        proofs.preset_written = True
        await devices.unit.set_gate(True)
        await self._wait_permits()
        return Step(Trigger.ARM)

    def _check_unit(self) -> None:
        unit = self._devices.unit.status
        if unit.latched or unit.open_grant_id:
            what = f"is latched ({unit.reason.name.lower()})" if unit.latched else f"has grant {unit.open_grant_id} open"
            raise DeviceError(
                f"the delivery unit {what}: its dose is not reconciled",
                code=3304,
                device=self._devices.unit.name,
                hint="recover the interrupted treatment first",
            )

    async def _wait_permits(self) -> None:
        limit_s = self._timing.permits_s
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    seen = await self._watch.refresh(with_ring=True)
                    if seen.access.permit_a and seen.access.permit_b and seen.interlock.relay_closed:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            seen = self._watch.seen()
            reasons = []
            if not seen.access.permit_a:
                reasons.append(f"chain A lacks {', '.join(chain_elements_lost(seen.access)) or 'its relay'}")
            if not (seen.access.permit_b and seen.interlock.relay_closed):
                code, active = seen.interlock.first_out_code, seen.interlock.active_trips
                reasons.append(f"the interlock system withholds (first-out code {code}, {active} active)")
            raise DeviceError(
                f"no permission to arm within {limit_s:g} s: {'; '.join(reasons) or 'a status is not answered'}",
                code=3306,
                device=self._belief.name,
                hint="see the interlock list",
            ) from None

    async def _disarm(self) -> None:
        """Take the preset back, whenever the room is not armed any more."""
        proofs = self._proofs
        proofs.confirmed = False
        if proofs.preset_sent and not proofs.beam_given:
            proofs.preset_written = False
            await self._devices.access.preset(0, 0.0, 0, False)
            proofs.preset_sent = False

    # --- beam -------------------------------------------------------------------------------------------------------

    async def _await_beam_on(self) -> Step:
        targets = self._targets()
        await self._confirm(
            Confirm.BEAM_ON,
            {
                "gantry_deg": targets.gantry_deg,
                "gantry_limit_deg": targets.tolerances.gantry_deg,
                "version": self._proofs.edit_version,
            },
        )
        await self._watch.refresh(with_ring=True)
        if self._watch.errors:
            return Step(Trigger.DISARM, "; ".join(f"{what}: {why}" for what, why in self._watch.errors.items()))
        self._proofs.confirmed = True
        return Step(Trigger.BEAM_ON)

    async def _irradiate(self) -> Step:
        proofs = self._proofs
        proofs.confirmed = False
        if proofs.tuned is None or proofs.placement is None:
            raise CommandRejected("beam without tuning or position", code=4306, device=self._belief.name)
        try:
            await self._permission.permission()
            context = DeliveryContext(
                self._job(),
                self._devices,
                self._permission,
                proofs.tuned,
                self._targets(),
                proofs.placement,
                self._belief.name,
                self._watchdog,
            )
            result = await self._deliver(context)
        except BeamEnded as ended:
            result = DeliveryResult(complete=False, reason=str(ended))
        proofs.delivery = result
        if not (result.complete and result.reconciled):
            return Step(Trigger.END_EARLY, result.reason or "the delivery ended early")
        async with asyncio.timeout(UNIT_CLOSE_S):
            while True:
                if not self._devices.unit.status.open_grant_id:
                    return Step(Trigger.COMPLETE)
                await asyncio.sleep(POLL_S)

    async def _await_resume(self) -> Step:
        """Quiet the unit, wait until every condition holds again, then ask for a fresh beam-on."""
        self._proofs.confirmed = False
        while True:
            try:
                await self.quiet_unit()
                break
            except CommunicationError:  # the request is withdrawn already; the delivery says what became of its grant
                await asyncio.sleep(POLL_S)
        while True:
            await self._wait_conditions()
            if not await self._operator.confirm(Confirm.RESUME, self._about({})):
                return Step(Trigger.END_EARLY, "the operator does not resume")
            try:
                await self.positioner.verify(self._targets(), with_gantry=True)
            except CommunicationError:  # lost again meanwhile: wait again, and ask again
                await asyncio.sleep(POLL_S)
                continue
            seen = await self._watch.refresh(with_ring=True)
            if not self._watch.withheld(seen) and not self._watch.errors:
                break
        await self._devices.unit.set_gate(True)
        self._proofs.confirmed = True
        return Step(Trigger.RESUME)

    async def _wait_conditions(self) -> None:
        while True:
            if not self._watch.withheld(await self._watch.refresh(with_ring=True)):
                with contextlib.suppress(CommunicationError):  # a nozzle that does not answer yet
                    if (await self._devices.snout.read_set_up())[0].good:
                        return
            await asyncio.sleep(POLL_S)

    async def quiet_unit(self) -> None:
        """Shut the controller's gate and end the open grant: after the request line, so that nothing waits for this."""
        unit = self._devices.unit
        await unit.set_gate(False)
        if unit.status.open_grant_id:
            await unit.abort()

    # --- common -----------------------------------------------------------------------------------------------------

    async def _confirm(self, kind: Confirm, facts: Mapping[str, Any]) -> None:
        if not await self._operator.confirm(kind, self._about(facts)):
            raise CommandRejected(
                f"the operator did not confirm {kind.value}", code=4307, device=self._belief.name, hint="start again when ready"
            )

    async def _ask_to_move_on(self, facts: Mapping[str, object]) -> bool:
        return await self._operator.confirm(Confirm.MOVE_ON, self._about(facts))

    def _about(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        job = self._job()
        return {
            "room": self._belief.name,
            "beam_number": job.beam.number,
            "beam_name": job.beam.name,
            "meterset": job.beam.meterset,
            "meterset_unit": job.beam.meterset_unit,
            **facts,
        }

    def _targets(self) -> Targets:
        targets = self._proofs.targets
        if targets is None:
            raise CommandRejected("there are no targets for this beam", code=4308, device=self._belief.name)
        return targets
