import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import profiles
assert profiles.__file__.startswith(sys.argv[1]), profiles.__file__
print(*profiles.device_names(), *profiles.model_names(), *profiles.stack_names())
profiles.device_preset("h100")
profiles.model_preset("mixtral")
assert profiles.resolve_cluster(profiles.cluster_from_shorthand("1x8:h100")).error_bands is not None
"""


def test_data_files_are_in_the_wheel_and_load_from_it(tmp_path):
    pytest.importorskip("hatchling", reason="building a wheel without network needs hatchling installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    command = [sys.executable, "-c", SCRIPT, str(wheel)]
    names = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
    with zipfile.ZipFile(wheel) as archive:
        assert {f"profiles/traces/{file.name}" for file in (ROOT / "profiles/traces").iterdir()} <= set(
            archive.namelist()
        )
    shelves = [ROOT / "profiles" / shelf for shelf in ("hardware", "models", "software")]
    files = [file for shelf in shelves for file in shelf.glob("*.json")]
    assert sorted(names) == sorted(file.stem for file in files)
