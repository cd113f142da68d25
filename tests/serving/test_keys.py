import json
import stat

import pytest

from stasc_ray.serving import keys
from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.keys import KeyRing, add_key, read_keys


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
    ring.look()
    assert ring.check(bearer(second), admin=False).name == "bob"
    file.write_text(json.dumps([key.model_dump() for key in read_keys(file) if key.name != "alice"]))
    ring.look()
    with pytest.raises(ApiError):
        ring.check(bearer(first), admin=False)


def test_a_half_edited_file_leaves_the_last_whole_one_in_force(tmp_path):
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice")
    ring = KeyRing(file)
    file.write_text("[{")
    ring.look()
    assert ring.check(bearer(secret), admin=False).name == "alice"


@pytest.mark.parametrize("how", ["broken", "gone"])
def test_without_a_file_that_can_be_read_the_door_closes_after_a_while(tmp_path, monkeypatch, how):
    """At 05a8cae a key that was revoked went on working, silently."""
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice")
    ring, whole = KeyRing(file), file.read_text()
    file.write_text("[{") if how == "broken" else file.unlink()
    ring.look()
    assert ring.problem and ring.check(bearer(secret), admin=False)
    monkeypatch.setattr(keys, "CLOSED_AFTER_S", 0.0)
    with pytest.raises(ApiError) as closed:
        ring.check(bearer(secret), admin=False)
    assert closed.value.status == 503
    monkeypatch.setattr(keys, "CLOSED_AFTER_S", 60.0)
    file.write_text(whole)
    ring.look()
    assert ring.problem is None and ring.check(bearer(secret), admin=False)


def test_keys_laid_out_as_kubernetes_does_are_read_again_when_the_link_in_the_middle_moves(tmp_path):
    """At 05a8cae the path was resolved where the app was built, which another pod does not have."""
    folders = [tmp_path / f"..2026_11_26_{number}" for number in range(2)]
    secrets = []
    for folder in folders:
        folder.mkdir()
        secrets.append(add_key(folder / "keys", "alice"))
    (tmp_path / "..data").symlink_to(folders[0].name)
    (tmp_path / "keys").symlink_to("..data/keys")
    ring = KeyRing(tmp_path / "keys")
    assert ring.check(bearer(secrets[0]), admin=False)
    (tmp_path / "..data_tmp").symlink_to(folders[1].name)
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    for file in folders[0].iterdir():
        file.unlink()
    folders[0].rmdir()
    ring.look()
    assert ring.check(bearer(secrets[1]), admin=False)
    with pytest.raises(ApiError):
        ring.check(bearer(secrets[0]), admin=False)


def test_tokens_are_held_while_a_request_runs_and_given_back_if_it_writes_fewer(tmp_path):
    file = tmp_path / "keys.json"
    add_key(file, "alice", tokens_per_minute=1000)
    ring = KeyRing(file)
    (key,) = read_keys(file)
    first = ring.charge(key, 800)
    with pytest.raises(ApiError, match="1000 tokens a minute") as limited:
        ring.charge(key, 400)
    assert limited.value.status == 429 and 10 <= int(limited.value.headers["Retry-After"]) <= 13
    first(100)
    ring.charge(key, 400)(400)
    ring.charge(key, 400)
    ring.charge(None, 10**9)(0)


def test_a_request_larger_than_a_minutes_worth_waits_for_all_of_it(tmp_path):
    file = tmp_path / "keys.json"
    add_key(file, "alice", tokens_per_minute=10)
    ring = KeyRing(file)
    (key,) = read_keys(file)
    ring.charge(key, 500)(500)
    with pytest.raises(ApiError):
        ring.charge(key, 1)


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
