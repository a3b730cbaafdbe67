"""Stores behind URLs: fetched once, whole or not at all, and every byte is what the manifest says."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

import sharded_runs
from handmade import write_store
from infnet_rec.cli import app
from infnet_rec.data import remote as cache
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.remote import is_url, local_store
from infnet_rec.data.run_data import open_data
from infnet_rec.data.store import STORE_VERSION, Store
from infnet_rec.errors import UserError


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A store in a folder that plays the bucket."""
    write_store(tmp_path / "bucket" / "shop")
    return tmp_path / "bucket" / "shop"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read from the other side, in order."""
    names: list[str] = []
    stream = cache.Remote.stream

    def noted(remote: Any, name: str) -> Iterator[bytes]:
        names.append(name)
        return stream(remote, name)

    monkeypatch.setattr(cache.Remote, "stream", noted)
    return names


def url_of(path: Path) -> str:
    return f"file://{path}"


def arrow_files(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*.arrow"))


def leftovers(folder: Path) -> list[str]:
    """What is in the cache besides finished stores and locks."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if ".part" in str(p))


def test_a_path_is_itself() -> None:
    assert local_store("runs/../store") == Path("runs/../store")
    assert local_store("/data/a store") == Path("/data/a store")
    urls = ("s3://b/x", "gs://b", "https://h/x", "memory://x", "file:///x", "simplecache::s3://b/x")
    assert all(map(is_url, urls)) and not any(map(is_url, ("store", "C:/x", "./a://b", "")))


def test_a_store_is_fetched_once(remote: Path, folder: Path, opened: list[str]) -> None:
    told: list[tuple[int, int]] = []
    first = local_store(url_of(remote), folder, lambda done, total: told.append((done, total)))
    total = sum(file["bytes"] for file in Store(remote).manifest["files"].values())
    assert told[0] == (0, total) and told[-1] == (total, total) and told == sorted(told)
    assert sorted(opened) == arrow_files(remote) and first.parent == folder
    assert check_store(Store(first)) == [] and Store(first).fingerprint == Store(remote).fingerprint
    assert local_store(url_of(remote) + "/", folder) == first and len(opened) == len(arrow_files(remote))
    assert leftovers(folder) == []


def test_any_protocol_of_fsspec(remote: Path, folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(remote), "/bucket/shop", recursive=True)
    try:
        assert check_store(Store(local_store("memory://bucket/shop", folder))) == []
    finally:
        memory.rm("/bucket", recursive=True)


def test_another_manifest_is_another_store(remote: Path, folder: Path) -> None:
    first = local_store(url_of(remote), folder)
    manifest = json.loads((remote / "manifest.json").read_text())
    (remote / "manifest.json").write_text(json.dumps(manifest | {"name": "a/b c"}))
    second = local_store(url_of(remote), folder)
    assert first != second and second.name.startswith("a_b_c-") and second.parent == folder


def test_the_folder_is_the_environments_or_the_homes(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INFNET_REC_CACHE", raising=False)
    assert local_store(url_of(remote)).parent == tmp_path / "home" / ".cache" / "infnet_rec" / "stores"
    monkeypatch.setenv("INFNET_REC_CACHE", str(tmp_path / "disk"))
    assert local_store(url_of(remote)).parent == tmp_path / "disk" / "stores"


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_file_is_named_and_not_kept(remote: Path, folder: Path, damage: str) -> None:
    victim = remote / "events" / "view.arrow"
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] if damage == "cut" else good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(
        UserError, match=r"file://.*: events/view\.arrow is not what the manifest says .* copy the store"
    ):
        local_store(url_of(remote), folder)
    kept = [name for name in leftovers(folder) if name.endswith((".arrow", ".part"))]
    assert not [path for path in folder.iterdir() if not path.name.startswith(".")], "nothing may be published"
    assert not [name for name in kept if name.endswith(("view.arrow", ".part"))]
    victim.write_bytes(good)
    assert check_store(Store(local_store(url_of(remote), folder))) == []


def test_what_an_interrupted_download_had_is_kept(
    remote: Path, folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole files only; the rest is fetched by the next one."""
    monkeypatch.setattr(cache, "STREAMS", 1)
    stop_at = sum(file["bytes"] for file in Store(remote).manifest["files"].values()) // 2

    def interrupt(done: int, total: int) -> None:
        if done > stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local_store(url_of(remote), folder, interrupt)
    had = {name.split("/", 1)[1] for name in leftovers(folder) if name.endswith(".arrow")}
    assert 0 < len(had) < len(arrow_files(remote)) and not [n for n in leftovers(folder) if n.endswith(".part")]
    opened.clear()
    told: list[int] = []
    path = local_store(url_of(remote), folder, lambda done, total: told.append(done))
    assert set(opened) == set(arrow_files(remote)) - had and told[0] > 0
    assert check_store(Store(path)) == [] and leftovers(folder) == []


def test_threads_that_race_fetch_once(remote: Path, folder: Path, opened: list[str]) -> None:
    with ThreadPoolExecutor(6) as pool:
        paths = set(pool.map(lambda _: local_store(url_of(remote), folder), range(6)))
    assert len(paths) == 1 and sorted(opened) == arrow_files(remote)


SLOW_FETCH = """
import sys, time
from pathlib import Path
from infnet_rec.data.remote import local_store

def progress(done, total):
    if done == 0:
        print("fetching", flush=True)
        time.sleep(float(sys.argv[3]))

print(local_store(sys.argv[1], Path(sys.argv[2]), progress), flush=True)
"""


def fetching(remote: Path, folder: Path, sleep_s: float) -> subprocess.Popen[str]:
    """A process that says when it begins to fetch, sleeps, fetches, and says where the store is."""
    command = [sys.executable, "-c", SLOW_FETCH, url_of(remote), str(folder), str(sleep_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_race_fetch_once(remote: Path, folder: Path) -> None:
    """The lock holds between processes; those that waited find the store and fetch nothing."""
    said = [process.communicate(timeout=60)[0].split() for process in [fetching(remote, folder, 1.0) for _ in range(3)]]
    assert sorted(len(words) for words in said) == [1, 1, 2]
    assert len({words[-1] for words in said}) == 1 and check_store(Store(Path(said[0][-1]))) == []


def test_who_waits_takes_over_when_the_other_process_dies(remote: Path, folder: Path) -> None:
    other = fetching(remote, folder, 60.0)
    assert other.stdout is not None and other.stdout.readline() == "fetching\n"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(local_store, url_of(remote), folder)
        assert not wait([waiting], timeout=0.2).done
        other.kill()
        assert check_store(Store(waiting.result(timeout=60))) == []
    other.communicate()


def test_a_full_disk_is_told_before_anything_is_fetched(
    remote: Path, folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        UserError, match=r"GiB are to be fetched to .*cache, which has 0\.0 GiB free; .*INFNET_REC_CACHE"
    ):
        local_store(url_of(remote), folder)
    assert opened == []


def test_faults_name_the_url_and_what_to_do(remote: Path, folder: Path) -> None:
    def fault(url: str) -> str:
        with pytest.raises(UserError) as caught:
            local_store(url, folder)
        return str(caught.value)

    assert "memory://nowhere: holds no manifest.json; is there a store?" in fault("memory://nowhere")
    assert fault("abc://x") == "store abc://x: cannot be opened (Protocol not known: abc)"
    (remote / "users.arrow").unlink()
    assert "holds no users.arrow; copy the store again" in fault(url_of(remote))
    manifest = json.loads((remote / "manifest.json").read_text())
    for change, text in (
        ({"store_version": 1}, f"has store_version 1, this package reads {STORE_VERSION}"),
        ({"files": {"../../x": {}}}, "its manifest names '../../x', which is outside of the store"),
        ({"files": {"/etc/x": {}}}, "its manifest names '/etc/x', which is outside of the store"),
        ({"files": None}, "its manifest.json is not that of a store"),
    ):
        (remote / "manifest.json").write_text(json.dumps(manifest | change))
        assert text in fault(url_of(remote))
    (remote / "manifest.json").write_text("[]")
    assert "its manifest.json is not that of a store" in fault(url_of(remote))


def test_a_missing_driver_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", no_driver)
    with pytest.raises(UserError, match=r"s3://b/x: a package is missing .*Install s3fs to access S3"):
        local_store("s3://b/x", folder)


def test_runs_and_verbs_take_urls(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFNET_REC_CACHE", str(tmp_path / "disk"))
    data = open_data(sharded_runs.small_config(url_of(remote), ["data.profile='all'"]))
    assert data.store.path.parent == tmp_path / "disk" / "stores"
    checked = CliRunner().invoke(app, ["data", "check", url_of(remote), "--json"])
    assert checked.exit_code == 0 and json.loads(checked.stdout)["store"] == str(data.store.path)
    missing = CliRunner().invoke(app, ["data", "check", "memory://nowhere"])
    assert missing.exit_code == 2 and "holds no manifest.json" in missing.stderr
