"""Addresses are understood or refused with what to write; maps place devices; no real actuator hangs on a simulated chain."""

import pytest

from drivers.hal.endpoints import EndpointMap, apply, load_endpoints, objections, parse_endpoint
from drivers.hal.errors import ConfigError
from drivers.hal.facility import load_facility


@pytest.fixture(scope="module")
def asan():
    return load_facility("asan")


def placed(**devices):
    return EndpointMap.model_validate({"devices": {name.replace("_", "-"): entry for name, entry in devices.items()}})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("serial:///dev/ttyUSB0?baudrate=19200&parity=N", ("serial", "/dev/ttyUSB0", "", 0)),
        ("tcp://192.168.1.20", ("tcp", "", "192.168.1.20", 502)),
        ("tcp://[::1]:1502", ("tcp", "", "::1", 1502)),
        ("ca://ioc1:5066", ("ca", "", "ioc1", 5066)),
        ("mqtt://localhost", ("mqtt", "", "localhost", 1883)),
        ("memory:G1-motion", ("memory", "G1-motion", "", 0)),
    ],
)
def test_an_address_is_understood(text, wanted):
    endpoint = parse_endpoint(text)
    assert (endpoint.scheme, endpoint.path, endpoint.host, endpoint.port) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "starts with none of"),
        ("/dev/ttyUSB0", "starts with none of"),
        ("http://x", "starts with none of"),
        ("memory:", "names no memory wire"),
        ("serial://ttyUSB0", "three slashes"),
        ("serial:///dev/ttyUSB0?baudrate=fast", "baudrate"),
        ("serial:///dev/ttyUSB0?baudrate=²00000", "baudrate"),
        ("serial:///dev/ttyUSB0?parity=X", "parity"),
        ("serial:///dev/ttyUSB0?bauds=9600", "unknown"),
        ("tcp://:502", "no host"),
        ("tcp://host:99999", "ort"),
        ("tcp://host/path", "path"),
        ("tcp://host?framing=ascii", "framing"),
    ],
)
def test_a_bad_address_is_refused_with_an_example(text, why):
    with pytest.raises(ConfigError, match="for example") as refused:
        parse_endpoint(text, "G1-gantry")
    assert why in str(refused.value)


def test_a_map_places_devices_and_leaves_the_rest_where_they_were(asan):
    there = apply(asan, placed(G1_gantry={"endpoint": "serial:///dev/pts/3?baudrate=19200", "simulated": True}))
    assert there.devices["G1-gantry"].endpoint == "serial:///dev/pts/3?baudrate=19200"
    assert there.devices["G1-gantry"].baud == 19200
    assert there.devices["G1-gantry"].simulated
    assert there.devices["G1-couch"] == asan.devices["G1-couch"]


def test_modbus_over_tcp_is_framed_as_such_unless_the_address_says_otherwise(asan):
    motion = {"endpoint": "tcp://127.0.0.1:1502", "simulated": True}
    assert apply(asan, placed(G1_gantry=motion)).devices["G1-gantry"].framing == "tcp"
    motion["endpoint"] += "?framing=rtu"
    assert apply(asan, placed(G1_gantry=motion)).devices["G1-gantry"].framing == "rtu"


def test_one_node_of_a_device_may_be_real_and_says_who_it_is(asan):
    encoder = {"endpoint": "serial:///dev/ttyUSB0?baudrate=115200", "identity": "E7"}
    gantry = apply(asan, placed(G1_load_encoder=encoder)).devices["G1-gantry"]
    assert gantry.part_endpoints == {3: "serial:///dev/ttyUSB0?baudrate=115200"}
    assert gantry.identity == "1009:D1,D1,E7"
    assert gantry.real_parts == ("G1-load-encoder",)


def test_every_objection_to_a_map_is_told_at_once(asan):
    wrong = placed(
        G9_gantry={"endpoint": "memory:x"}, G1_couch={"endpoint": "ca://host"}, G1_nozzle={"endpoint": "serial://nowhere"}
    ).model_copy(update={"facility": "qst"})
    reasons = "\n".join(objections(asan, wrong))
    for word in ("facility qst", "G9-gantry", "no stream wire", "three slashes"):
        assert word in reasons


@pytest.mark.parametrize("actuator", ["G1-drive-A", "G1-couch", "G1-magnets", "G1-delivery-unit"])
def test_a_real_actuator_is_refused_on_a_simulated_chain(asan, actuator):
    wire = "ca://10.0.0.1" if actuator in ("G1-magnets", "G1-delivery-unit") else "serial:///dev/ttyUSB0"
    endpoints = EndpointMap.model_validate({"devices": {actuator: {"endpoint": wire}}})
    (reason,) = objections(asan, endpoints, "G1")
    assert actuator in reason
    assert "chain A" in reason


def test_the_shared_accelerator_counts_in_every_room(asan):
    endpoints = placed(accelerator={"endpoint": "ca://10.0.0.1"})
    assert len(objections(asan, endpoints)) == len(asan.rooms)


def test_a_real_sensor_may_hang_on_a_simulated_chain(asan):
    assert not objections(asan, placed(G1_load_encoder={"endpoint": "serial:///dev/ttyUSB0"}), "G1")


def test_a_real_actuator_may_hang_on_a_real_chain(asan):
    real = placed(G1_drive_A={"endpoint": "serial:///dev/ttyUSB0"}, G1_safety={"endpoint": "tcp://10.0.0.2"})
    assert not objections(asan, real, "G1")


def test_an_overlay_lies_on_the_file_of_a_simulator_process(tmp_path):
    (tmp_path / "endpoints.toml").write_text(
        'facility = "asan"\nspeed = 2.0\nbackdoor = "http://127.0.0.1:9"\n'
        '[devices.G1-gantry]\nendpoint = "serial:///dev/pts/3"\nsimulated = true\n'
    )
    overlay = tmp_path / "rig.toml"
    overlay.write_text(
        'simulation = "endpoints.toml"\n[devices.G1-load-encoder]\nendpoint = "serial:///dev/ttyUSB0"\n'
        '[rig]\nlocal_stop = "red button"\n'
    )
    laid = load_endpoints(overlay)
    assert laid.speed == 2.0
    assert laid.devices["G1-gantry"].simulated
    assert not laid.devices["G1-load-encoder"].simulated
    assert laid.rig.local_stop == "red button"


@pytest.mark.parametrize("text", ["devices = 3", "[devices.x]\n", "speed = 0", 'speed = "2"', "format = 2", "spede = 1", "[[["])
def test_a_bad_map_is_refused(tmp_path, text):
    file = tmp_path / "endpoints.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"endpoints\.toml"):
        load_endpoints(file)
    with pytest.raises(ConfigError):
        load_endpoints(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "no device is named"),
        ({"backdoor": "http://127.0.0.1:1", "devices": {"G1-couch": {"endpoint": "serial:///dev/x"}}}, "no token"),
        ({"devices": {"G1-couch": {"endpoint": "memory:G1-motion"}}}, "memory wire leads nowhere"),
        ({"devices": {"G1-couch": {"endpoint": "serial:///dev/x", "identity": "zz"}}}, "hexadecimal"),
    ],
)
def test_a_map_that_cannot_be_used_is_refused_before_anybody_uses_it(asan, values, word):
    assert any(word in reason for reason in objections(asan, EndpointMap.model_validate(values), "G1"))


def test_a_fifo_is_no_endpoint_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "endpoints.toml")
    with pytest.raises(ConfigError, match="is no file"):
        load_endpoints(tmp_path / "endpoints.toml")


def test_every_fault_of_a_file_is_a_reason_of_its_own(tmp_path):
    file = tmp_path / "endpoints.toml"
    file.write_text('speed = 0\nspede = 1\n[devices.x]\nsimulated = "true"\n')
    with pytest.raises(ConfigError) as refused:
        load_endpoints(file)
    assert len(refused.value.as_reasons) == 4
    assert all(str(file) in reason for reason in refused.value.as_reasons)
