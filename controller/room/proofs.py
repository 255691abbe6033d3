"""What a session has proven so far, kept together so that an edit can void all of it at once, and turned into `RoomFacts`.

Not responsible for proving anything (`activities`) nor for judging (`states`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controller.room.imaging import Verified
from controller.room.ports import DeliveryResult, Lease, Tuned
from controller.room.positioning import Placement, Targets
from controller.room.states import RoomFacts
from controller.room.supervision import DOSE_UNIT_TRIPPED, Seen, Timing, chain_elements_lost, stale

HEALTHY_TO_ACKNOWLEDGE = 1 | 4 | 8 | 32 | 64  # chain A without door and standstill: a door may be open when a fault is cleared
NEVER_S = 2**31 - 1  # largest age that the wire carries


@dataclass(slots=True)
class Proofs:
    """Evidence of one session. Everything starts unproven.

    `edit_version` is what the plan, beam, set-up and tolerances are now; `proven_version` is what the rest refers to.
    """

    edit_version: int = 1
    proven_version: int = 1
    identified: bool = False
    targets: Targets | None = None
    placement: Placement | None = None
    image: Verified | None = None
    accepted: bool = False
    lease: Lease | None = None
    route: str = ""
    tuned: Tuned | None = None
    ceilings_loaded: bool = False
    preset_sent: bool = False  # on its way at least: it has to be taken back, even when nobody saw it arrive
    preset_written: bool = False
    confirmed: bool = False
    moved: bool = False
    beam_given: bool = False
    delivery: DeliveryResult | None = None
    acknowledged_dose: bool = False

    def void(self) -> None:
        """After an edit: nothing but the token and what has already happened still holds."""
        self.identified = self.accepted = self.confirmed = False
        self.targets = self.placement = self.image = self.tuned = None
        self.ceilings_loaded = False

    def facts(self, seen: Seen, timing: Timing, holds: Callable[[Lease], bool], *, armed_or_later: bool) -> RoomFacts:
        """The snapshot that guards judge."""
        lease = self.lease
        old = stale(seen, timing, with_ring=armed_or_later)
        lost = chain_elements_lost(seen.access)
        fixed = self.targets is not None and self.targets.port_deg is not None
        delivered = self.delivery
        return RoomFacts(
            t_ns=seen.now_ns,
            edit_version=self.edit_version,
            proven_version=self.proven_version,
            identified=self.identified,
            set_up=self.placement is not None and (fixed or seen.ring is None or not seen.ring.enabled),
            image_verified=self.image is not None,
            accepted=self.accepted,
            secured=seen.access.secured,
            token_held=lease is not None and holds(lease),
            route_open=bool(self.route),
            tuned=self.tuned is not None,
            self_test_age_s=seen.dose.self_test_age_s,
            ceilings_loaded=self.ceilings_loaded,
            preset_written=self.preset_written,
            permit_a=seen.access.permit_a,
            permit_b=seen.access.permit_b and seen.interlock.relay_closed,
            fresh=not old,
            confirmed=self.confirmed,
            delivered_all=delivered is not None and delivered.complete and delivered.reconciled,
            beam_given=self.beam_given,
            unit_closed=seen.unit.open_grant_id == 0,
            token_returned=lease is None or not holds(lease),
            causes_gone=_causes_gone(seen, timing),
            reconciled=self.acknowledged_dose or not self.beam_given or (delivered is not None and delivered.reconciled),
            service_key=seen.access.service_mode,
            explain={
                "fresh": "; ".join(old),
                "permit_a": ", ".join(lost),
                "permit_b": f"first-out code {seen.interlock.first_out_code}, {seen.interlock.active_trips} active trips",
                "secured": f"door {'closed' if seen.access.door_closed else 'open'}, search state {seen.access.search_state}",
                "proven": f"version {self.edit_version}, confirmed {self.proven_version}",
                "self_tested": _age_words(seen.dose.self_test_age_s),
                "unit_closed": f"grant {seen.unit.open_grant_id}",
            },
        )


def _age_words(age_s: int) -> str:
    """Age of a self-test; the dose unit tells the largest number that it has when there was none."""
    return f"{age_s} s old" if 0 <= age_s < NEVER_S else "never"


def _causes_gone(seen: Seen, timing: Timing) -> bool:
    healthy = seen.access.chain_a_bits & HEALTHY_TO_ACKNOWLEDGE == HEALTHY_TO_ACKNOWLEDGE
    quiet = not seen.unit.latched and seen.dose.state != DOSE_UNIT_TRIPPED and not seen.access.beam_present
    return healthy and quiet and seen.access.estop_healthy and not stale(seen, timing, with_ring=False)
