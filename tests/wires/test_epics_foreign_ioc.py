"""Our client on EPICS base's own server with records of every kind: what real equipment serves, and we never would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from epics_bench import in_real_time, until
from epics_tool import epics_tool

from drivers.hal.errors import CommandRejected, DataError
from drivers.wire.channels import Sample, Severity
from drivers.wire.epics_channels import EpicsChannels
from simulators.servers.ioc_link import HOST, free_port

pytestmark = pytest.mark.xdist_group("wires")

DATABASE = """
record(mbbo, "F:STATE") { field(ZRST, "Off") field(ONST, "Ramp") field(TWST, "Hold") field(VAL, "1") field(PINI, "YES") }
record(bo, "F:SWITCH") { field(ZNAM, "Out") field(ONAM, "In") field(PINI, "YES") }
record(ao, "F:FIELD") { field(VAL, "1.5") field(HIGH, "2") field(HSV, "MINOR") field(HIHI, "3") field(HHSV, "MAJOR")
    field(PINI, "YES") field(PREC, "3") }
record(calc, "F:BEAT") { field(SCAN, ".1 second") field(CALC, "VAL+1") }
record(stringout, "F:NAME") { field(VAL, "quadrupole 7") field(PINI, "YES") }
record(waveform, "F:SHORTS") { field(FTVL, "SHORT") field(NELM, "4") }
record(waveform, "F:BYTES") { field(FTVL, "UCHAR") field(NELM, "4") }
record(waveform, "F:FLOATS") { field(FTVL, "FLOAT") field(NELM, "4") }
record(waveform, "F:ONE") { field(FTVL, "DOUBLE") field(NELM, "1") }
record(waveform, "F:NAMES") { field(FTVL, "STRING") field(NELM, "3") }
record(longout, "F:LOCKED") { field(VAL, "3") field(DISP, "1") field(PINI, "YES") }
record(longout, "F:UNSET") { }
"""


def test_records_of_every_kind_become_the_values_of_the_contract(tmp_path: Path) -> None:
    database, port = tmp_path / "foreign.db", free_port()
    database.write_text(DATABASE, encoding="ascii")

    async def main() -> None:
        async with epics_tool(port, "softIoc", "-S", "-d", str(database)):
            ca = EpicsChannels(f"ca://{HOST}:{port}")
            beats: list[Sample] = []
            fields: list[Sample] = []
            names: list[Sample] = []
            ca.monitor("F:BEAT", beats.append)
            await until(lambda: bool(beats), "the start of the server")

            assert (await ca.get("F:STATE")).value == 1
            await ca.put("F:STATE", 2)
            assert (await ca.get("F:STATE")).value == 2
            await ca.put("F:STATE", "Off")
            assert (await ca.get("F:STATE")).value == 0
            with pytest.raises(DataError, match="not taken by the server"):
                await ca.put("F:STATE", "Nonsense")
            with pytest.raises(DataError, match="integers of 0 to 15"):
                await ca.put("F:SWITCH", 70_000)

            ca.monitor("F:FIELD", fields.append)
            for value, severity in ((2.5, Severity.MINOR), (3.5, Severity.MAJOR), (1.0, Severity.NO_ALARM)):
                await ca.put("F:FIELD", value)
                sample = await ca.get("F:FIELD")
                assert (sample.value, sample.severity) == (value, severity)
            await until(lambda: [s.severity for s in fields] == [0, 1, 2, 0])
            assert (await ca.get("F:UNSET")).severity is Severity.INVALID
            assert (await ca.get("F:NAME")).value == "quadrupole 7"

            for name, values in (("F:SHORTS", [-(2**15), 2**15 - 1]), ("F:BYTES", [0, 255, 7]), ("F:FLOATS", [0.5, -0.25])):
                await ca.put(name, values)
                back = (await ca.get(name)).value
                assert isinstance(back, np.ndarray) and back.tolist() == values
                assert back.dtype == (np.float64 if name == "F:FLOATS" else np.int32) and not back.flags.writeable
            with pytest.raises(DataError, match="integers of -32768 to 32767"):
                await ca.put("F:SHORTS", [2**15])
            await ca.put("F:ONE", 4.5)
            assert (await ca.get("F:ONE")).value == 4.5  # an array of at most one is a number: nothing on the wire tells

            ca.monitor("F:NAMES", names.append)
            with pytest.raises(DataError, match="array of text"):
                await ca.get("F:NAMES")
            with pytest.raises((DataError, CommandRejected)):
                await ca.put("F:LOCKED", 4)
            assert (await ca.get("F:LOCKED")).value == 3
            await until(lambda: len(beats) >= 8)
            counts = [float(sample.value) for sample in beats]  # type: ignore[arg-type]
            assert counts == [counts[0] + n for n in range(len(counts))]
            assert names == []
            await ca.close()

    in_real_time(main())
