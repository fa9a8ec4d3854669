"""The cache of compiled forms: shared when complete, thrown away when doubtful."""

from __future__ import annotations

from pathlib import Path

from keystone_mpi.tools.jit_cache import JitCache


def compile_form(folder: str, name: str, *, killed: bool = False) -> None:
    forms = Path(folder) / "fenics"
    (forms / f"{name}.c").write_text("code")
    if not killed:
        (forms / f"{name}.cpython-311.so").write_text("binary")
        (forms / f"{name}.c.cached").write_text("")


def forms(folder: str | Path) -> list[str]:
    return sorted(path.name for path in (Path(folder) / "fenics").iterdir())


def test_complete_forms_go_to_the_workers_other_slots(tmp_path: Path) -> None:
    user = tmp_path / "user"
    (user / "fenics").mkdir(parents=True)
    (user / "fenics" / "poisoned.c").write_text("")
    (user / "fonts").mkdir()
    (user / "fonts" / "list").write_text("fonts")
    one = JitCache(str(tmp_path / "shared"), str(tmp_path / "one"))
    two = JitCache(str(tmp_path / "shared"), str(tmp_path / "two"))
    first = one.begin(1, str(user))
    assert forms(first) == []
    assert (Path(first) / "fonts" / "list").read_text() == "fonts"
    compile_form(first, "a")
    one.end(True)
    second = two.begin(1, str(user))
    assert second != first
    assert forms(second) == ["a.c", "a.c.cached", "a.cpython-311.so"]
    compile_form(second, "b")
    two.end(True)
    assert one.begin(1, str(user)) == first
    assert "b.c.cached" in forms(first)


def test_a_killed_compiler_poisons_nothing(tmp_path: Path) -> None:
    cache = JitCache(str(tmp_path / "shared"), str(tmp_path / "own"))
    folder = cache.begin(1, str(tmp_path / "none"))
    compile_form(folder, "good")
    cache.end(True)
    folder = cache.begin(1, str(tmp_path / "none"))
    compile_form(folder, "bad", killed=True)
    cache.end(False)
    assert not any(name.startswith("bad") for name in forms(cache.begin(1, str(tmp_path / "none"))))
    cache.end(True)
    # Incomplete entries of a task that succeeded are not passed on either.
    folder = cache.begin(1, str(tmp_path / "none"))
    compile_form(folder, "half", killed=True)
    cache.end(True)
    assert forms(tmp_path / "shared") == ["good.c", "good.c.cached", "good.cpython-311.so"]


def test_a_retry_has_an_empty_cache(tmp_path: Path) -> None:
    cache = JitCache(str(tmp_path / "shared"), str(tmp_path / "own"))
    compile_form(cache.begin(1, "/nonexistent"), "a")
    cache.end(True)
    fresh = cache.begin(2, "/nonexistent")
    assert forms(fresh) == []
    compile_form(fresh, "a")
    cache.end(True)
    assert forms(cache.begin(3, "/nonexistent")) == []
