"""Where the processes of a service come from."""

import json
import subprocess
import sys

SCRIPT = """
import json, multiprocessing, os, signal, sys

def look(voice):
    loaded = [name for name in ("api.decider", "planner.search", "pulp") if name in sys.modules]
    keeps = "MALLOC_TRIM_THRESHOLD_" in os.environ
    voice.send((loaded, keeps, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])))

if __name__ == "__main__":
    from api.fork_server import start_fork_server
    start_fork_server()
    start_fork_server()
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("forkserver").Process(target=look, args=(theirs,)).start()
    print(json.dumps([*ours.recv(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])]))
"""


def test_processes_are_born_with_what_they_need_and_deaf_to_ctrl_c_which_the_service_hears(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    loaded, keeps_memory, is_deaf, service_is_deaf = json.loads(said.stdout)
    assert (loaded, is_deaf, service_is_deaf) == (["api.decider", "planner.search", "pulp"], True, False)
    assert keeps_memory
