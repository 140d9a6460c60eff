"""What is changed in other packages is put back, whatever happens, and only in the versions that were
read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from paw_hpc.policy.megatron import patches
from paw_hpc.policy.megatron.patches import MEGATRON, TORCH, WrittenFor, check_version, patched
from paw_hpc.system.errors import UserError


class Base:
    kind = "inherited"

    @staticmethod
    def answer() -> int:
        return 1


class Derived(Base): ...


def test_everything_is_as_before_afterwards() -> None:
    one = Base()
    with (
        pytest.raises(ZeroDivisionError),
        patched(one, "kind", "own", written_for=TORCH),
        patched(Base, "answer", lambda _: 2, written_for=TORCH),
    ):
        assert one.kind == "own" and Base.kind == "inherited" and one.answer() == 2
        1 / 0  # noqa: B018
    assert (
        "kind" not in vars(one)
        and Base.answer() == one.answer() == 1
        and isinstance(vars(Base)["answer"], staticmethod)
    )
    with (
        patched(Derived, "kind", "derived", written_for=TORCH),
        patched(Derived, "kind", "nested", written_for=TORCH),
    ):
        assert Derived.kind == "nested"
    assert "kind" not in vars(Derived)
    module = SimpleNamespace(pickle=1)
    with patched(module, "pickle", 2, written_for=TORCH):
        assert module.pickle == 2
    assert module.pickle == 1


def test_a_name_that_is_gone_and_a_version_that_was_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError, match="renamed"), patched(Base, "renamed", 1, written_for=TORCH):
        pytest.fail("it went on")
    assert not hasattr(Base, "renamed")
    monkeypatch.setattr(patches, "version", lambda package: "0.160.1+cu13")
    other = WrittenFor("megatron-core", ("0.16", "0.15"))  # a pair that was not checked yet
    with (
        pytest.raises(UserError, match=r"megatron-core 0\.160\.1\+cu13: .* in 0\.16\.\*, 0\.15\.\*; install"),
        patched(Base, "kind", 1, written_for=other),
    ):
        pytest.fail("it went on")
    assert Base.kind == "inherited"


def test_what_is_installed_here_was_read() -> None:
    check_version(MEGATRON)
    check_version(TORCH)


def test_the_package_is_without_the_library_of_tests() -> None:
    files = list(Path(patches.__file__).parents[2].rglob("*.py"))
    assert len(files) > 200 and not [file for file in files if "unittest" in file.read_text(encoding="utf-8")]
