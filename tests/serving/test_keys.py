import json
import stat

import pytest

from stasc_ray.serving.doors import KeyRing, add_key, read_keys
from stasc_ray.serving.errors import ApiError


def bearer(secret: str) -> str:
    return f"Bearer {secret}"


def test_a_key_is_kept_as_a_hash_in_a_private_file(tmp_path):
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice")
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KeyRing(file).check(bearer(secret), admin=False).name == "alice"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer nonsense", "Basic abc", "Bearer \ud800"])
def test_unknown_keys_are_refused(tmp_path, header):
    file = tmp_path / "keys.json"
    add_key(file, "alice")
    with pytest.raises(ApiError) as refused:
        KeyRing(file).check(header, admin=False)
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"


def test_a_plain_key_is_no_admin_key(tmp_path):
    file = tmp_path / "keys.json"
    plain, admin = add_key(file, "alice"), add_key(file, "root", admin=True)
    ring = KeyRing(file)
    with pytest.raises(ApiError, match="admin"):
        ring.check(bearer(plain), admin=True)
    assert ring.check(bearer(admin), admin=True).admin


def test_keys_can_be_added_and_revoked_while_serving(tmp_path):
    file = tmp_path / "keys.json"
    first = add_key(file, "alice")
    ring = KeyRing(file)
    second = add_key(file, "bob")
    assert ring.check(bearer(second), admin=False).name == "bob"
    file.write_text(json.dumps([key.model_dump() for key in read_keys(file) if key.name != "alice"]))
    with pytest.raises(ApiError):
        ring.check(bearer(first), admin=False)


def test_a_half_edited_file_leaves_the_last_whole_one_in_force(tmp_path):
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice")
    ring = KeyRing(file)
    file.write_text("[{")
    assert ring.check(bearer(secret), admin=False).name == "alice"


def test_a_rate_limit_says_when_to_come_back(tmp_path):
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice", requests_per_minute=2)
    ring = KeyRing(file)
    ring.check(bearer(secret), admin=False)
    ring.check(bearer(secret), admin=False)
    with pytest.raises(ApiError) as limited:
        ring.check(bearer(secret), admin=False)
    assert limited.value.status == 429
    assert 1 <= int(limited.value.headers["Retry-After"]) <= 31


def test_a_name_is_used_once(tmp_path):
    add_key(tmp_path / "keys.json", "alice")
    with pytest.raises(ValueError, match="another name"):
        add_key(tmp_path / "keys.json", "alice")


def test_a_missing_or_wrong_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="stasc keys add"):
        read_keys(tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="stasc keys add"):
        read_keys(tmp_path / "other.json")
