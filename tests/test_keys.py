"""Keys: files that their owner alone can read, and what is refused as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paw_hpc.recipe import load_recipe, parse_recipe
from paw_hpc.rollout.sglang.serve import beginning
from paw_hpc.system.errors import UserError
from paw_hpc.system.keys import bearer, new_key, read_key, write_secret
from tests.second_user import somebody_else


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_key(path, "rollout.fleet.key_file")
    assert str(caught.value).startswith("rollout.fleet.key_file: ") and "\n" not in str(caught.value)
    return str(caught.value)


class TestAKey:
    def test_comes_back_from_its_file(self, tmp_path: Path) -> None:
        key = new_key()
        write_secret(tmp_path / "key", key + "\n")
        assert (
            read_key(tmp_path / "key", "x") == key
            and bearer(key) == {"Authorization": f"Bearer {key}"}
            and bearer(None) == {}
        )

    def test_is_never_the_same_and_no_program_takes_it_for_anything_else(self) -> None:
        keys = {new_key() for _ in range(1000)}
        assert len(keys) == 1000 and all(len(key) == 64 and key.isalnum() for key in keys)

    def test_is_in_a_file_for_its_owner_whatever_the_umask_and_whatever_lay_there(
        self, tmp_path: Path
    ) -> None:
        before = os.umask(0)
        try:
            (tmp_path / "key").write_text("an older one, for everybody")
            write_secret(tmp_path / "key", "secret")
        finally:
            os.umask(before)
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
        assert [p.name for p in tmp_path.iterdir()] == ["key"]

    def test_is_not_for_another_user(self) -> None:
        folder = Path(f"/tmp/paw-keys-{os.getpid()}")
        folder.mkdir(mode=0o755)
        try:
            write_secret(folder / "key", new_key())
            (folder / "open").write_text("for everybody")
            assert somebody_else("read", str(folder / "key"), str(folder / "open")) == [False, True]
        finally:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o601])
    def test_that_others_can_use_is_none(self, tmp_path: Path, mode: int) -> None:
        (tmp_path / "key").write_text("0123")
        (tmp_path / "key").chmod(mode)
        assert (
            "chmod 600" in (said := refusal(tmp_path / "key"))
            and f"mode {mode:04o}" in said
            and "0123" not in said
        )

    @pytest.mark.parametrize(
        "content", [b"", b"\n", b"two words", b"two\nlines", "kéy".encode(), b"\xff\xfe", b"\0", b"x" * 5000]
    )
    def test_that_cannot_go_into_a_header_is_none(self, tmp_path: Path, content: bytes) -> None:
        write_secret(tmp_path / "key", "")
        with open(tmp_path / "key", "wb") as file:
            file.write(content)
        assert "holds no key" in refusal(tmp_path / "key")

    def test_that_is_no_file_is_none(self, tmp_path: Path) -> None:
        assert "cannot be read (No such file or directory)" in refusal(tmp_path / "key")
        assert refusal(tmp_path)
        os.mkfifo(tmp_path / "pipe", 0o600)
        assert "is no file" in refusal(tmp_path / "pipe")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_that_belongs_to_another_user_is_none(self, tmp_path: Path) -> None:
        write_secret(tmp_path / "key", "0123")
        os.chown(tmp_path / "key", 65534, 65534)
        assert "belongs to another user" in refusal(tmp_path / "key")


class TestARecipe:
    def test_names_a_key_for_servers_of_somebody_else_and_only_then(self) -> None:
        servers = ["rollout.engine=sglang", "rollout.fleet.key_file=/keys/theirs"]
        fleet = load_recipe(
            "recipes/quickstart-sglang.yaml", [*servers, "rollout.fleet.addresses=[http://node7:30000]"]
        ).rollout.fleet
        assert fleet.key_file == "/keys/theirs"
        with pytest.raises(UserError, match=r"rollout\.fleet: key_file: it goes with addresses"):
            load_recipe("recipes/quickstart-sglang.yaml", servers)

    @pytest.mark.parametrize(
        "argument",
        [
            "--api-key=0123",
            "--api-key",
            "--admin-api-key",
            "--api_key",
            "--config=x.yaml",
            "--tokenizer-worker-num=2",
        ],
    )
    def test_may_not_undo_the_key_of_a_runs_servers(self, argument: str) -> None:
        with pytest.raises(
            UserError,
            match=r"rollout\.fleet: arguments: --(admin-)?(api-key|config|tokenizer-worker-num) .*; leave "
            r"it out",
        ):
            parse_recipe({"rollout": {"engine": "sglang", "fleet": {"arguments": [argument]}}})


# A stand-in for SGLang that says what it was started with, the key in pieces, and at the end without a line's
# end.
SAYS_ITS_KEY = """
import json, os, sys, time
config = sys.argv[sys.argv.index("--config") + 1]
key = json.load(open(config))["api-key"]
print(sys.argv, config, flush=True)
print(f"api_key='{key}' and again {key}{key}", flush=True)
sys.stderr.write(f"half {key[:5]}"); sys.stderr.flush(); time.sleep(0.3)
sys.stderr.write(f"{key[5:]} whole, not all: {key[:-1]} {key[:3]}\\n"); sys.stderr.flush()
print("umask", oct(os.umask(0)), os.environ["TMPDIR"])
sys.stderr.write("last " + key); sys.stderr.flush()
sys.exit(3)
"""


def test_what_a_server_says_goes_into_its_log_without_its_key(tmp_path: Path) -> None:
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").write_text("")
    (tmp_path / "sglang" / "launch_server.py").write_text(SAYS_ITS_KEY)
    key = new_key()
    write_secret(tmp_path / "key.yaml", json.dumps({"api-key": key}))
    order = {
        "arguments": ["--model", "m"],
        "key_config": str(tmp_path / "key.yaml"),
        "host": "127.0.0.1",
        "log": str(tmp_path / "log"),
        "environment": {"PYTHONPATH": str(tmp_path)},
    }
    serve = [sys.executable, "paw_hpc/rollout/sglang/serve.py", json.dumps(order)]
    kept, held = os.pipe()  # it would end the server once its standard input closes
    done = subprocess.run(serve, stdin=kept, capture_output=True, text=True, timeout=60)
    os.close(kept), os.close(held)
    with open(tmp_path / "log") as file:
        said = file.read()
    assert done.returncode == 3 and key not in said + done.stdout + done.stderr
    assert "api_key='*****' and again **********\n" in said and "half ***** whole" in said
    # What only begins like a key stays, and nothing is lost.
    assert (
        f"not all: {key[:-1]} {key[:3]}\n" in said
        and said.count("last *****") == 1
        and str(tmp_path / "key.yaml") in said
    )
    assert "umask 0o77 " in said and not Path(said.split("umask 0o77 ")[1].split()[0]).exists(), (
        "its folder is gone with it"
    )


def test_the_beginning_of_a_key_is_kept_back_and_nothing_else() -> None:
    assert [
        beginning(text, b"abcabd") for text in (b"", b"x", b"a", b"xabca", b"abcabd", b"abcabcab", b"d")
    ] == [0, 0, 1, 4, 0, 5, 0]
    assert beginning(b"abc", b"") == 0


def test_python_shows_no_key_where_it_shows_an_order() -> None:
    from paw_hpc.rollout.sglang.publish.traversal import StagePass

    assert "0123" not in repr(StagePass((), None, "0123"))  # type: ignore[arg-type]
