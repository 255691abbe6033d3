"""What a terminal offers of a plan: each fraction with what was given of it, the proposal first."""

from controller.console.views import FractionView, NextFraction, PlanView
from controller.console.watch_words import fraction_choices, fraction_of, plan_line

PLAN = PlanView(
    id="abc",
    file="plan.dcm",
    sha256="abc",
    uid="1.2",
    label="sphere",
    patient_id="P1",
    patient_name="Doe^Jane",
    species="12C",
    approval="APPROVED",
    machine="",
    fractions=3,
    beams=[],
    received_utc="2031-01-01T08:00:00+00:00",
    objections={"G1": []},
)


def test_the_remainder_of_a_fraction_is_offered_first_where_it_comes_next():
    history = [
        FractionView(number=1, status="complete", share=1.0),
        FractionView(number=2, status="partial", share=0.86),
    ]
    following = NextFraction(fraction=2, remainder=True)
    standing = "fraction 1 of 3 complete; fraction 2 partial, 86.0 % given. Next: what is left of fraction 2"
    plan = PLAN.model_copy(update={"history": history, "next": following, "standing": standing}).model_dump(mode="json")
    offered = fraction_choices(plan)
    assert [words for _, words in offered] == [
        "what is left of fraction 2",
        "fraction 1: complete",
        "fraction 2: partial",
        "fraction 3",
    ]
    assert [fraction_of(key) for key, _ in offered[:2]] == [{"fraction": 2, "remainder": True}, {"fraction": 1}]
    assert standing in plan_line(plan, "G1")


def test_a_plan_that_was_never_begun_offers_its_fractions_in_order():
    plan = PLAN.model_copy(update={"next": NextFraction(fraction=1, remainder=False)}).model_dump(mode="json")
    assert [fraction_of(key)["fraction"] for key, _ in fraction_choices(plan)] == [1, 2, 3]
