"""Limits are taken only as two people signed them; verified with the standard library, signed by another."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from typer.testing import CliRunner

from controller.cli import app
from controller.sign_limits import sign_limits
from drivers.hal.errors import BeamlineError
from interlocks.daemon import main
from interlocks.matrix import SHIPPED, LimitsError, load
from interlocks.signature import load_key, verifier


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A copy of the shipped file, signed by two people, with the key's public half."""
    directory = tmp_path_factory.mktemp("signed")
    file, public = directory / "limits.toml", directory / "site.pub.json"
    file.write_bytes(SHIPPED.read_bytes())
    sign_limits([file], directory / "site.key", "Ada", "Bo", public, "2031-01-01")
    return file, public


def copied(signed, directory, **changes):
    """The signed file elsewhere, with other fields in its signature block."""
    file = directory / "limits.toml"
    file.write_bytes(signed[0].read_bytes())
    block = json.loads(signed[0].with_suffix(".toml.sig").read_text())
    block.update(changes)
    file.with_suffix(".toml.sig").write_text(json.dumps(block))
    return file


def test_a_signed_file_is_taken(signed):
    assert load(signed[0], verifier([signed[1]])).signature
    assert (signed[0].parent / "site.key").stat().st_mode & 0o077 == 0


def test_the_key_is_used_again_when_it_is_there(signed, tmp_path):
    other = tmp_path / "overlay.toml"
    other.write_text("[engine]\nbypass_max_h = 4.0\n")
    sign_limits([other], signed[0].parent / "site.key", "Ada", "Bo", None)
    assert load(signed[0], verifier([signed[1]]), other).bypass_max_h == 4.0


def test_an_unsigned_overlay_over_a_signed_file_is_refused(signed, tmp_path):
    other = tmp_path / "overlay.toml"
    other.write_text("[engine]\nbypass_max_h = 4.0\n")
    with pytest.raises(LimitsError, match=r"overlay\.toml.*\n.*signature missing"):
        load(signed[0], verifier([signed[1]]), other)


def test_what_is_wrong_beside_the_signature_is_told_with_it(signed, tmp_path):
    """Whoever edits sees every reason at once; nothing is accepted by that."""
    file, other = tmp_path / "limits.toml", tmp_path / "overlay.toml"
    file.write_bytes(SHIPPED.read_bytes())
    other.write_text('[motor]\na = 1\n[interlock.RING_ANGLE]\ntest = { limit = 300 }\nsource = "x"\n')
    verify = verifier([signed[1]])
    with pytest.raises(LimitsError) as caught:
        load(file, verify, other)
    first, second, *content = caught.value.reasons
    assert first == "limits.toml: signature missing: no limits.toml.sig beside it"
    assert second == "signature missing: no overlay.toml.sig beside it"
    assert content[0].startswith("overlay: unknown table 'motor': a row is [interlock.ID] with source and test = {")
    assert content[1:] == ["overlay: RING_ANGLE: limit = 300 relaxes 200"]
    with pytest.raises(LimitsError) as caught:
        load(copied(signed, tmp_path, author="Eve"), verify, other)
    assert caught.value.reasons[0] == "limits.toml: signature not valid: it does not belong to this key"
    assert caught.value.reasons[1:] == (second, *content)
    file.write_text("[engine]\n")
    with pytest.raises(LimitsError) as caught:
        load(file, verify)
    assert "changed since" in caught.value.reasons[0] and "interlock: table missing" in caught.value.reasons


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"author": "Eve"}, "does not belong to this key"),
        ({"approver": "Eve"}, "does not belong to this key"),
        ({"date": "2032-01-01"}, "does not belong to this key"),
        ({"approver": " ADA "}, "the same person"),
        ({"approver": ""}, "all needed"),
        ({"author": "Ada\napprover: Bo"}, "all needed"),
        ({"sha256": "0" * 64}, "another file"),
        ({"key": "0123456789abcdef"}, "not trusted"),
        ({"signature": "00"}, "does not belong to this key"),
        ({"signature": "1"}, "does not belong to this key"),
        ({"signature": "f" * 768}, "does not belong to this key"),
        ({"signature": "-5"}, "does not belong to this key"),
        ({"signature": "soup"}, "not a signature block"),
        ({"signature": None}, "not a signature block"),
    ],
)
def test_any_other_block_is_refused_with_the_reason(signed, tmp_path, changes, reason):
    with pytest.raises(LimitsError, match=reason):
        load(copied(signed, tmp_path, **changes), verifier([signed[1]]))


def test_a_changed_file_is_refused(signed, tmp_path):
    file = copied(signed, tmp_path)
    file.write_bytes(file.read_bytes().replace(b"limit = 200", b"limit = 900", 1))
    with pytest.raises(LimitsError, match="changed since"):
        load(file, verifier([signed[1]]))


def test_a_signature_of_another_key_is_refused(signed, tmp_path):
    public = tmp_path / "other.pub.json"
    sign_limits([], None, "Ada", "Bo", public)
    with pytest.raises(LimitsError, match="not trusted"):
        load(signed[0], verifier([public]))
    assert load(signed[0], verifier([public, signed[1]])).signature


def test_a_signature_with_anything_but_the_whole_padding_is_refused(signed, tmp_path):
    private = load_pem_private_key((signed[0].parent / "site.key").read_bytes(), None).private_numbers()
    n, size = private.public_numbers.n, 384
    block = json.loads(signed[0].with_suffix(".toml.sig").read_text())
    whole = pow(int(block["signature"], 16), 65537, n).to_bytes(size, "big")
    for forged in (
        whole[:10] + b"\xfe" + whole[11:],  # a hole in the padding
        b"\x00\x02" + whole[2:],  # of another kind
        b"\x00\x01\xff\xff\x00" + whole[-51:] + b"\x00" * (size - 56),  # short, with room for anything behind
        bytes(size - 32) + whole[-32:],  # none at all
    ):
        signature = f"{pow(int.from_bytes(forged, 'big'), private.d, n):x}"
        with pytest.raises(LimitsError, match="does not belong"):
            load(copied(signed, tmp_path, signature=signature), verifier([signed[1]]))


def test_a_small_key_is_no_key(tmp_path):
    weak = generate_private_key(public_exponent=65537, key_size=1024)
    numbers = weak.public_key().public_numbers()
    public = tmp_path / "weak.pub.json"
    public.write_text(json.dumps({"n": f"{numbers.n:x}", "e": 65537}))
    with pytest.raises(ValueError, match="1024 bits"):
        load_key(public)
    pem = tmp_path / "weak.key"
    pem.write_bytes(weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(BeamlineError, match="3072"):
        sign_limits([], pem, "Ada", "Bo", None)
    public.write_text("{}")
    with pytest.raises(ValueError, match="not a public key"):
        load_key(public)


@pytest.mark.parametrize("approver", ["Ada", "ada ", ""])
def test_nobody_signs_alone(tmp_path, approver):
    with pytest.raises(BeamlineError, match="two people"):
        sign_limits([], tmp_path / "k", "Ada", approver, None)


@pytest.mark.parametrize("approver", ["Ada", " ada ", ""])
def test_the_command_refuses_one_person_in_both_roles_and_writes_nothing(tmp_path, approver):
    overlay = tmp_path / "site.toml"
    overlay.write_text('[interlock.RING_ANGLE]\ntest = { limit = 150 }\nsource = "acceptance"\n')
    files = [str(overlay), "--key", str(tmp_path / "site.key"), "--public", str(tmp_path / "site.pub.json")]
    refused = CliRunner().invoke(app, ["sign-limits", *files, "--author", "Ada", "--approver", approver])
    assert refused.exit_code == 2 and "two people" in refused.output and "6422" in refused.output
    assert list(tmp_path.iterdir()) == [overlay], "neither a signature nor a key"


def daemon(directory, *options):
    files = ["--buttons", str(directory / "b"), "--journal", str(directory / "j")]
    return main(["--port", "1", *files, *options])


def test_the_daemon_refuses_what_nobody_signed_and_says_why(signed, tmp_path, capsys):
    file = tmp_path / "limits.toml"
    file.write_bytes(SHIPPED.read_bytes())
    assert daemon(tmp_path, "--limits", str(file)) == 2
    assert "signature missing: no limits.toml.sig" in capsys.readouterr().err
    assert daemon(tmp_path, "--limits", str(signed[0])) == 2
    assert "is not trusted" in capsys.readouterr().err
    assert daemon(tmp_path, "--limits", str(signed[0]), "--trust", str(tmp_path / "none")) == 2
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_unsigned_limits_are_for_development_on_this_computer_only(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        daemon(tmp_path, "--unsigned", "--host", "192.0.2.7")
    assert ended.value.code == 2
    assert "loopback" in capsys.readouterr().err


def run(*arguments):
    return CliRunner().invoke(app, ["sign-limits", *map(str, arguments), "--author", "Ada", "--approver", "Bo"])


def test_a_site_signs_its_own_overlay_with_its_own_key(signed, tmp_path):
    overlay, key, public = tmp_path / "site.toml", tmp_path / "site.key", tmp_path / "site.pub.json"
    overlay.write_text('[interlock.RING_ANGLE]\ntest = { limit = 150 }\nsource = "acceptance"\n')
    done = run(overlay, "--key", key, "--public", public)
    assert done.exit_code == 0, done.output
    taken = load(signed[0], verifier([signed[1], public]), overlay)
    assert taken.row("RING_ANGLE").params["limit"] == 150
    overlay.write_text(overlay.read_text().replace("150", "250"))
    refused = run(overlay, "--key", key)
    assert refused.exit_code == 2
    assert "relaxes" in refused.output


def test_a_signature_that_nobody_could_verify_is_not_made(tmp_path):
    file = tmp_path / "limits.toml"
    file.write_bytes(SHIPPED.read_bytes())
    refused = run(file)
    assert refused.exit_code == 2
    assert "--public" in refused.output
    assert not file.with_suffix(".toml.sig").exists()
