"""Set-up for real: fresh virtual environments, filled from a folder of tiny hand-made wheels.

Only what cannot be produced is simulated: another Python version, a Python without ensurepip.
"""

import ast
import http.server
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from workbook import process, setup
from workbook.__main__ import extras_of

STDLIB_MODULES = ["__init__.py", "__main__.py", "setup.py", "process.py"]
# A stand-in for the command line: it says which process `__main__` handed over to.
REPORT = """
import importlib.util, json, os, sys

def run_command(arguments):
    found = [name for name in ("torch", "tiny", "tiny_test") if importlib.util.find_spec(name)]
    print(json.dumps([arguments, sys.executable, found, dict(os.environ)]))
    return 0
"""


def make_wheel(folder: Path, name: str, version: str, size: int = 0) -> None:
    """A wheel that holds one module, of `size` bytes."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{module}.py", "#" * size)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")


def make_course(root: Path, pins: list[str]) -> Path:
    """The modules of set-up with a small package set, in a folder of their own."""
    (root / "workbook").mkdir(parents=True)
    for name in STDLIB_MODULES:
        shutil.copy(setup.ROOT / "workbook" / name, root / "workbook")
    (root / "workbook" / "cli.py").write_text(REPORT)
    write_pins(root, pins)
    return root


def write_pins(root: Path, pins: list[str]) -> None:
    (root / "pyproject.toml").write_text(
        f"[project]\nname = 'tiny-course'\nversion = '1'\ndependencies = {pins}\n"
        "[project.optional-dependencies]\ntest = ['tiny-test==1.0']\n"
    )


def environment(find_links: Path | None, **more: str) -> dict[str, str]:
    """A plain environment whose only package source is that folder (None: none at all)."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    source = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    if find_links:
        source["PIP_FIND_LINKS"] = str(find_links)
    return {**kept, **source, **more}


def workbook(root: Path, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "workbook", *arguments],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def report(done: subprocess.CompletedProcess) -> tuple:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    # pip reads PIP_FIND_LINKS as a list separated by spaces, so this path holds none.
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in [("torch", "2.13.0+cpu"), ("tiny", "1.0"), ("tiny", "1.1")]:
        make_wheel(folder, name, version)
    make_wheel(folder, "tiny-test", "1.0")
    return folder


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    root = tmp_path_factory.mktemp("a folder") / "my course"
    return make_course(root, ["torch==2.13.0", "tiny==1.0"])


# The next five tests are the life of one folder, whose path holds spaces, in order.


def test_first_use_makes_and_fills_the_environment(course, wheels):
    done = workbook(course, "lab", "--port", "1", env=environment(wheels))
    arguments, python, found, env = report(done)
    assert arguments == ["lab", "--port", "1"]
    assert Path(python) == course / ".venv" / "bin" / "python"
    assert found == ["torch", "tiny"]
    assert env["PYTHONPATH"] == str(course)
    assert "on first use only" in done.stderr and "PyTorch" in done.stderr
    assert "CUDA" not in done.stderr  # a local CPU wheel was configured, so nothing to warn of


def test_environment_imports_the_course_from_any_folder(course, tmp_path):
    python = course / ".venv" / "bin" / "python"
    code = "import workbook; print(workbook.__file__)"
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(course / "workbook" / "__init__.py")


def test_later_use_starts_at_once(course):
    done = workbook(course, "doctor", env=environment(None))  # pip could install nothing
    assert done.stderr == ""
    assert report(done)[2] == ["torch", "tiny"]


def test_only_the_tests_install_the_test_packages(course, wheels):
    _, _, found, _ = report(workbook(course, "test", env=environment(wheels)))
    assert found == ["torch", "tiny", "tiny_test"]
    assert workbook(course, "lab", env=environment(None)).stderr == ""
    assert workbook(course, "test", env=environment(None)).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [("lab", []), ("test", ["test"]), ("test --all", ["test", "demo"]), ("demo --cli", []),
     ("demo --web", ["demo"]), ("demo --web --help", [])],
)  # fmt: skip
def test_extras_are_those_that_the_command_needs(arguments, extras):
    assert extras_of(arguments.split()) == extras


def test_new_pin_or_torn_stamp_is_installed_again(course, wheels):
    write_pins(course, ["torch==2.13.0", "tiny==1.1"])
    done = workbook(course, "lab", env=environment(wheels))
    assert report(done)[2] == ["torch", "tiny", "tiny_test"] and "Setting up" in done.stderr
    (course / ".venv" / "workbook-packages.json").write_text('{"inst')
    assert "Setting up" in workbook(course, "lab", env=environment(wheels)).stderr


def test_environment_that_has_the_packages_is_used(tmp_path):
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in ("pytest", "typer")]
    root = make_course(tmp_path / "course", pins)
    _, python, _, _ = report(workbook(root, "lab", env=environment(None)))
    assert python == sys.executable
    assert not (root / ".venv").exists()


class Silent(http.server.BaseHTTPRequestHandler):
    """A package index that accepts a request and never answers it."""

    def do_GET(self):
        self.server.asked.set()
        self.server.over.wait(60)

    def log_message(self, *_):
        pass


@pytest.fixture
def silent_index():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.asked, server.over, server.daemon_threads = threading.Event(), threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def test_interrupted_setup_goes_on(tmp_path, wheels, silent_index):
    root = make_course(tmp_path / "course", ["torch==2.13.0", "tiny==1.0"])
    index = f"http://127.0.0.1:{silent_index.server_address[1]}/simple"
    env = environment(None) | {"PIP_INDEX_URL": index, "PIP_NO_INDEX": "0"}
    started = subprocess.Popen(
        [sys.executable, "-m", "workbook", "lab"],
        cwd=root,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert silent_index.asked.wait(60)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130
    assert said.strip().endswith("the same command goes on from where it stopped.")
    assert "Traceback" not in said
    assert report(workbook(root, "lab", env=environment(wheels)))[2] == ["torch", "tiny"]


# ---------------------------------------------------------------- what goes wrong


def failure_of_pip(monkeypatch, tmp_path, env: dict[str, str], pin: str) -> str:
    """The sentence for a real pip run that fails."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(setup.SetupError) as caught:
        setup.run_pip(sys.executable, ["--target", str(tmp_path / "packages"), pin], "packages")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_network(monkeypatch, tmp_path):
    env = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
    }
    said = failure_of_pip(monkeypatch, tmp_path, env, "tiny==1.0")
    assert said.startswith("No network: pip cannot reach the package index")


def test_package_that_the_index_lacks(monkeypatch, tmp_path, wheels):
    said = failure_of_pip(monkeypatch, tmp_path, environment(wheels), "tiny==9.9")
    assert said.startswith("The package index offers no tiny==9.9 for Python 3.")


@pytest.fixture
def small_disk(tmp_path):
    """Runs a command in a private view of the files where `disk` is a file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs '{disk}' && exec \"$@\""
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*prefix, "true"], capture_output=True).returncode
    ):
        pytest.skip("a small file system cannot be mounted here: no user namespaces")
    return disk, prefix


def test_no_disk_before_the_start(small_disk):
    disk, prefix = small_disk
    code = (
        "import sys; from pathlib import Path; from workbook import setup;"
        f"setup.ROOT = Path({str(disk)!r}); setup.check_disk(3.0)"
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code], cwd=setup.ROOT, capture_output=True, text=True
    )
    said = done.stderr.splitlines()[-1]
    assert "No disk space: set-up needs 3 GB free" in said and "there are 0.0 GB" in said


def test_no_disk_on_the_way(small_disk, tmp_path):
    disk, prefix = small_disk
    make_wheel(tmp_path, "large", "1.0", size=3_000_000)
    pip = [sys.executable, "-m", "pip", "install", "--target", str(disk / "packages"), "large"]
    done = subprocess.run(
        [*prefix, *pip], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode
    assert setup.explain(done.stdout + done.stderr).startswith("No disk space is left")


def test_wrong_python(monkeypatch):
    for version in [(3, 10, 4), (3, 14, 0)]:
        monkeypatch.setattr(sys, "version_info", version)
        with pytest.raises(setup.SetupError, match=r"needs Python 3\.11 to 3\.13"):
            setup.ensure()


def test_old_python_can_read_the_modules_that_answer_it():
    for name in STDLIB_MODULES:
        source = (setup.ROOT / "workbook" / name).read_text(encoding="utf-8")
        tree = ast.parse(source, feature_version=(3, 8))
        imported = {
            alias.name.partition(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert imported <= set(sys.stdlib_module_names) - {"tomllib"}, name


def test_no_venv_module(tmp_path):
    code = (
        "import sys; sys.modules['ensurepip'] = None; from workbook import setup;"
        "from pathlib import Path; setup.make_venv(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "v")],
        cwd=setup.ROOT,
        capture_output=True,
        text=True,
    )
    assert "This Python has no venv module: install it" in done.stderr.splitlines()[-1]


def test_any_other_failure_shows_its_last_error():
    output = "Collecting tiny\nERROR: the wheel is damaged\n[notice] a new pip is there\n"
    assert setup.explain(output).startswith("Set-up failed: ERROR: the wheel is damaged")


# ---------------------------------------------------------------- the build of torch


@pytest.fixture
def torch_index(tmp_path):
    """A web server that answers as the index of CPU builds would: it has a page for torch."""
    (tmp_path / "index" / "torch").mkdir(parents=True)
    handler = http.server.SimpleHTTPRequestHandler
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: handler(*args, directory=tmp_path / "index")
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(setup, "has_nvidia_driver", lambda: False)


def pip_offers(monkeypatch, folder: Path, version: str) -> str:
    """Configure pip with one torch wheel and return a Python that holds none."""
    make_wheel(folder, "torch", version)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_IGNORE_INSTALLED", "1")
    return sys.executable


def test_local_cpu_wheel_needs_no_index(monkeypatch, tmp_path, no_driver):
    python = pip_offers(monkeypatch, tmp_path, "2.13.0+cpu")
    monkeypatch.setattr(setup, "TORCH_CPU_INDEX", "http://127.0.0.1:9")
    assert setup.torch_options(python, ["torch==2.13.0"]) == []


def test_cpu_index_is_added_without_a_driver(monkeypatch, tmp_path, no_driver, torch_index):
    python = pip_offers(monkeypatch, tmp_path, "2.13.0")
    monkeypatch.setattr(setup, "TORCH_CPU_INDEX", torch_index)
    options = setup.torch_options(python, ["torch==2.13.0"])
    assert options == ["--extra-index-url", torch_index]


def test_size_is_said_before_the_cuda_build(monkeypatch, tmp_path, no_driver, capsys):
    python = pip_offers(monkeypatch, tmp_path, "2.13.0")
    monkeypatch.setattr(setup, "TORCH_CPU_INDEX", "http://127.0.0.1:9")
    monkeypatch.setattr(setup, "DISK_CUDA", 0.0)
    assert setup.torch_options(python, ["torch==2.13.0"]) == []
    said = capsys.readouterr().err
    assert "cannot be reached" in said and "2.7 GB to download" in said


def test_driver_keeps_the_cuda_build(monkeypatch, tmp_path, torch_index):
    python = pip_offers(monkeypatch, tmp_path, "2.13.0")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(setup, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(setup, "TORCH_CPU_INDEX", torch_index)
    monkeypatch.setattr(setup, "DISK_CUDA", 0.0)
    assert setup.torch_options(python, ["torch==2.13.0"]) == []


def test_reachable_answers_within_its_limit(torch_index, silent_index):
    assert setup.reachable(torch_index + "/torch/")
    assert not setup.reachable(torch_index + "/absent/")  # answered with 404
    assert not setup.reachable("http://127.0.0.1:9")
    start = time.monotonic()
    assert not setup.reachable(f"http://127.0.0.1:{silent_index.server_address[1]}", seconds=0.3)
    assert time.monotonic() - start < 5


# ---------------------------------------------------------------- the package set


def test_package_set_is_torch_first_and_all_pinned():
    pins = setup.package_set(["test"])
    assert pins[0].startswith("torch==") and "+" not in pins[0]
    assert all(pin.count("==") == 1 for pin in pins)
    assert not any(pin.startswith("trl") for pin in setup.package_set())


def test_missing_compares_versions_and_ignores_the_local_part():
    import torch

    plain = torch.__version__.split("+")[0]
    assert setup.missing([f"torch=={plain}", "pytest==0.1", "no-such-package==1.0"]) == [
        "pytest==0.1",
        "no-such-package==1.0",
    ]


def test_progress_names_the_file_and_the_number_of_packages():
    line = "  Downloading scipy-1.17.1-cp311-linux_x86_64.whl (35.2 MB)"
    assert setup.pip_step(line) == "downloading scipy 1.17.1 (35.2 MB)"
    assert setup.pip_step("Installing collected packages: a, b, c") == "unpacking 3 packages"
    assert setup.pip_step("Requirement already satisfied: a in b") == ""


# ---------------------------------------------------------------- threads, allocator, path


def test_settings_keep_what_the_user_set():
    chosen = {"OMP_NUM_THREADS": "3", "MALLOC_TRIM_THRESHOLD_": "7", "PYTHONPATH": "/elsewhere"}
    settings = process.process_settings(chosen)
    assert "OMP_NUM_THREADS" not in settings and "MALLOC_TRIM_THRESHOLD_" not in settings
    assert settings["OMP_WAIT_POLICY"] == "passive"
    assert settings["PYTHONPATH"] == os.pathsep.join([str(setup.ROOT), "/elsewhere"])
    assert process.process_settings({**chosen, **settings}) == {}  # so the restart happens once


def test_threads_spin_where_nobody_works_beside_them(monkeypatch):
    monkeypatch.setattr(process, "free_cores", lambda: 2)
    for command in process.UNATTENDED:
        settings = process.process_settings({}, command)
        assert settings["OMP_NUM_THREADS"] == "2" and int(settings["GOMP_SPINCOUNT"]) > 0
        assert process.process_settings(settings, command) == {}
    assert "GOMP_SPINCOUNT" not in process.process_settings({}, "lab")
    assert "GOMP_SPINCOUNT" not in process.process_settings({"OMP_NUM_THREADS": "2"}, "run")
    monkeypatch.setattr(process, "free_cores", lambda: 1)
    assert "GOMP_SPINCOUNT" not in process.process_settings({}, "run")


def test_free_cores_are_those_that_idle(monkeypatch):
    assert 1 <= process.free_cores(0.05) <= min(8, os.cpu_count())
    monkeypatch.setattr(process, "idle_ticks", lambda: 0)  # every core was busy meanwhile
    assert process.free_cores(0.05) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are glibc's")
def test_allocator_settings_avoid_page_faults():
    code = (
        "import numpy, resource\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def use():\n"
        "    for _ in range(20): numpy.ones(48 * 2**17)\n"
        "use(); before = faults(); use(); print(faults() - before)\n"
    )

    def faults(settings):
        env = {**environment(None), **settings}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        return int(done.stdout)

    tuned = process.process_settings(environment(None, OMP_NUM_THREADS="1"))
    assert faults(tuned) < faults({}) / 2
