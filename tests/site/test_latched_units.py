"""A dose unit that latched in beam stays so until a physicist has signed for what it gave; then the rest is delivered."""

import pytest
from treating import Treating, command, quick_site, sphere

pytestmark = [pytest.mark.xdist_group("wires"), pytest.mark.timeout(1200), pytest.mark.slow]


def test_monitors_that_disagree_latch_until_a_physicist_signs(tmp_path):
    plan = sphere(tmp_path / "plan.dcm", 30)
    site = quick_site(tmp_path / "site").ready()
    run = None
    try:
        run = Treating(site, plan, tmp_path)
        run.until_said("layer 3/")
        site.ask("POST", "/faults", {"room": "G1", "spec": "mu1-gain:1.3"})
        assert run.wait() == 3, run.said()
        assert site.room()["unit"]["latched"]
        site.ask("DELETE", "/faults/mu1-gain?room=G1")
        refused = command("resume", run.output, "--endpoints", site.file)
        assert refused.returncode == 2
        assert "physicist must sign" in refused.stderr
        unsigned = command("recover", run.output, "--endpoints", site.file)
        assert unsigned.returncode == 3, unsigned.stdout + unsigned.stderr
        assert site.room()["unit"]["latched"], "nobody has signed"
        signed = command(
            "recover", run.output, "--endpoints", site.file, "--sign", "A. Physicist", "--reason", "monitor 2 was sound"
        )
        assert signed.returncode == 0, signed.stdout + signed.stderr
        assert "latch cleared" in signed.stdout
        assert not site.room()["unit"]["latched"]
        resumed = command("resume", run.output, "--endpoints", site.file)
        assert resumed.returncode == 3, resumed.stdout + resumed.stderr
        assert "A. Physicist" in resumed.stdout
    finally:
        if run is not None:
            run.kill()
        site.end()
