"""The doctor: what it finds, what it advises, and that nothing it tries can take it along."""

from __future__ import annotations

import json
import sys

import pytest

from marigold3d import doctor, probes
from marigold3d.doctor import Check, as_json, exit_code, format_report
from marigold3d.probes import PROBES, Probe, install_line, missing_libraries, package_for_error, run_probe


@pytest.mark.slow
def test_every_failure_names_its_remedy():
    checks = doctor.run_checks()
    assert {"Python", "packages", "torch", "embedded model", "pycolmap", "Open3D", "Qt", "napari"} <= {
        c.name for c in checks
    }
    for check in checks:
        assert bool(check.remedy) != check.ok, check
        assert "\n" not in check.detail, check
    json.dumps(as_json(checks))
    assert exit_code([c for c in checks if c.name in ("Python", "packages", "torch", "pycolmap")]) == 0


def test_optional_parts_only_warn():
    fine, broken = Check("torch", True, "2.0"), Check("torch", False, "absent", "pip install torch")
    window = Check("Qt", False, "absent", "pip install PySide6_Essentials", required=False)
    assert exit_code([fine, window]) == 0
    assert exit_code([broken]) == 1
    report = format_report([fine, window])
    assert "warn  Qt" in report
    assert "-> pip install PySide6_Essentials" in report
    assert report.splitlines()[-1] == "ready; 1 optional part is missing"
    assert "not ready: 1 to mend" in format_report([broken])
    assert as_json([fine, window])["ready"] is True
    assert [c["status"] for c in as_json([fine, window, broken])["checks"]] == ["ok", "warn", "fail"]


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("ImportError: libusb-1.0.so.0: cannot open shared object file: No such file or directory", "libusb-1.0-0"),
        ("OSError: libGL.so.1: cannot open shared object file", "libgl1"),
        ("ImportError: libxkbcommon-x11.so.0: cannot open", "libxkbcommon-x11-0"),
        ("ImportError: libgomp.so.1: cannot open shared object file", "libgomp1"),
        ("ModuleNotFoundError: No module named 'open3d'", None),
    ],
)
def test_a_missing_library_becomes_a_package(message, package):
    assert package_for_error(message) == package


def test_the_install_line_suits_the_system(monkeypatch):
    monkeypatch.setattr(probes.sys, "platform", "linux")
    monkeypatch.setattr(probes.shutil, "which", lambda name: "/usr/bin/apt-get")
    assert install_line(["libgl1", "libegl1", "libgl1"]) == "apt-get install -y --no-install-recommends libgl1 libegl1"
    monkeypatch.setattr(probes.shutil, "which", lambda name: None)
    assert "package manager" in install_line(["libgl1"])


def test_missing_libraries_are_found():
    assert missing_libraries(["libsurely-not-there.so.7"]) == ["libsurely-not-there.so.7"]


def test_an_abort_stays_in_its_process(monkeypatch):
    monkeypatch.setitem(PROBES, "abort", "import os; os.abort()")
    probe = run_probe("abort")
    assert not probe.ok
    assert "exit status -6" in probe.line
    monkeypatch.setitem(PROBES, "raise", "raise ImportError('libusb-1.0.so.0: cannot open shared object file')")
    probe = run_probe("raise")
    assert "libusb-1.0-0" in probe.remedy("something else")
    monkeypatch.setitem(PROBES, "hang", "import time; time.sleep(60)")
    monkeypatch.setattr(probes, "TIMEOUT_S", 0.5)
    assert "no answer" in run_probe("hang").line


def test_noise_before_the_answer_is_left_out(monkeypatch):
    monkeypatch.setitem(PROBES, "noisy", "print('FEngine (64 bits)'); print('1.2.3')")
    assert run_probe("noisy") == Probe(True, "1.2.3")


def test_no_qt_binding_names_one(monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    assert doctor.check_qt().remedy == "pip install 'PySide6_Essentials!=6.12.0'"


def test_missing_xcb_libraries_are_named_without_starting_qt(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: True)
    monkeypatch.setattr(doctor, "missing_libraries", lambda names: ["libxcb-icccm.so.4", "libxcb-keysyms.so.1"])
    check = doctor.check_qt()
    assert "libxcb-icccm.so.4" in check.detail
    assert "libxcb-icccm4 libxcb-keysyms1" in check.remedy
    assert not check.required


def test_missing_packages_and_weights_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "av" else "1")
    assert doctor.check_packages().remedy == "pip install av"
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    check = doctor.check_weights()
    assert not check.ok
    assert check.required


def test_the_hub_cache_is_where_the_hub_puts_it(monkeypatch, tmp_path):
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert doctor.check_hub().detail == f"{tmp_path / 'hub'}: 1 model"


def test_a_missing_display_offers_the_virtual_one(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "xvfb" in doctor.check_display().remedy
    monkeypatch.setenv("DISPLAY", ":7")
    assert doctor.check_display() == Check("display", True, ":7", required=False)
