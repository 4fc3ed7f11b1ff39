"""The C boundary: declarations, versions, statuses, callbacks."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from awq_edge import Model, __version__, _native, errors
from awq_edge._native import library as native_library


def test_declarations_are_the_text_between_the_markers() -> None:
    header = "before /* cffi begin */ int f(void); /* cffi end */ after"
    assert _native.declarations(header) == " int f(void); "


def test_header_without_markers_is_refused() -> None:
    with pytest.raises(errors.InternalError, match="markers"):
        _native.declarations("int f(void);")


def test_every_status_has_its_exception() -> None:
    header = _native.header_path().read_text(encoding="utf-8")
    names = re.findall(r"AWQE_([A-Z_]+) =\s+(\d+)", header.partition("} awqe_status;")[0])
    expected = {
        name.replace("_", "").lower() + "error": int(value) for name, value in names if value != "0"
    }
    found = {kind.__name__.lower(): i + 1 for i, kind in enumerate(native_library._EXCEPTIONS)}
    assert found == expected


def test_library_and_package_are_one_release() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ffi, library = native_library.load()
    assert ffi.string(library.awqe_version()).decode() == __version__
    assert f'version = "{__version__}"' in pyproject


def test_library_exports_what_the_header_declares() -> None:
    library = ctypes.CDLL(str(_native.library_path()))
    header = _native.declarations(_native.header_path().read_text(encoding="utf-8"))
    for name in re.findall(r"\b(awqe_\w+)\(", header):
        assert hasattr(library, name), name


def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    fake = tmp_path / "libawq_edge.so"
    fake.write_bytes(b"not a library")
    program = "from awq_edge import _native, errors\n" + (
        "try: _native.kernel_tables()\nexcept errors.UnsupportedError as e: print(e)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"AWQ_EDGE_LIBRARY": str(fake), "PYTHONPATH": ":".join(sys.path)},
    ).stdout
    assert str(fake) in output
    assert "wheel" in output


def test_read_bandwidth_is_plausible() -> None:
    assert 1e8 < _native.read_bandwidth(1, 8 << 20) < 1e13


def test_read_bandwidth_of_nothing_is_refused() -> None:
    with pytest.raises(errors.InvalidArgumentError):
        _native.read_bandwidth(1, 0)


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["a"], [1.5]])
def test_token_that_is_no_uint32_is_refused(stories: Model, tokens: list[object]) -> None:
    native = stories.session()._native
    assert native is not None
    with pytest.raises(errors.InvalidArgumentError, match="whole numbers"):
        native.evaluate(tokens)  # type: ignore[arg-type]


def test_token_outside_the_vocabulary_is_refused_by_the_library(stories: Model) -> None:
    native = stories.session()._native
    assert native is not None
    with pytest.raises(errors.InvalidArgumentError):
        native.evaluate([stories.info.vocabulary_size])
    assert native.position == 0


def test_small_logits_array_is_refused(stories: Model) -> None:
    native = stories.session()._native
    assert native is not None
    with pytest.raises(errors.InvalidArgumentError, match="too small"):
        native.evaluate([1, 2], np.empty((1, stories.info.vocabulary_size), np.float32))


def test_too_many_tokens_for_the_context(stories: Model) -> None:
    native = stories.session(context_length=4)._native
    assert native is not None
    with pytest.raises(errors.ContextFullError):
        native.evaluate([1] * 5)


def test_callback_exception_comes_out_and_not_into_c(
    stories: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    native = stories.session()._native
    assert native is not None

    class Stopped(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped(f"{done} of {total}")

    with pytest.raises(Stopped):
        native.evaluate([1] * 400, progress=stop)
    assert native.position < 400
    assert capfd.readouterr() == ("", "")
    native.evaluate([1] * (400 - native.position))  # still usable
    assert native.position == 400


def test_progress_counts_up_to_the_whole(stories: Model) -> None:
    native = stories.session()._native
    assert native is not None
    seen: list[tuple[int, int]] = []
    native.evaluate([1] * 400, progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert all(total == 400 for _, total in seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_sampling_before_anything_was_read_is_refused(stories: Model) -> None:
    native = stories.session()._native
    assert native is not None
    sampler = _native.NativeSampler(
        temperature=0,
        top_k=0,
        top_p=1,
        min_p=0,
        repetition_penalty=1,
        repetition_window=0,
        seed=0,
    )
    with pytest.raises(errors.InvalidArgumentError):
        native.sample(sampler)


def test_nonsense_sampling_is_refused() -> None:
    with pytest.raises(errors.InvalidArgumentError):
        _native.NativeSampler(
            temperature=-1,
            top_k=0,
            top_p=1,
            min_p=0,
            repetition_penalty=1,
            repetition_window=0,
            seed=0,
        )


def test_unknown_kernel_table_is_refused(stories: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_EDGE_KERNELS", "abacus")
    with pytest.raises(errors.UnsupportedError, match="abacus"):
        stories.session()


def test_forced_kernel_table_is_the_active_one(
    stories: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWQ_EDGE_KERNELS", "reference")
    assert stories.session().kernels == "reference"
