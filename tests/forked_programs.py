"""Python programs in processes of their own that share what is slow to import: each is forked off one that has it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FORKING = """
import json, os, sys, traceback
first, folder, *programs = json.loads(sys.argv[1])
exec(first)
for number, program in enumerate(programs):
    if os.fork():
        os.wait()
        continue
    for stream in (1, 2):
        os.dup2(os.open(f"{folder}/{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
    status = 0
    try:
        exec(program, {"__name__": "__main__"})
    except SystemExit as left:
        status = left.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"{folder}/{number}.status", "w") as file:
        file.write(str(status))
    os._exit(0)
"""


def run_forked(folder: Path, first: str, programs: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run each program with what ``first`` has imported, in a process of its own; ``folder`` is an empty one."""
    words = [sys.executable, "-c", FORKING, json.dumps([first, str(folder), *programs])]
    subprocess.run(words, check=True)
    ended = []
    for number, program in enumerate(programs):
        status, out, err = (folder / f"{number}.{end}" for end in ("status", 1, 2))
        told = (path.read_text(encoding="utf-8") for path in (out, err))
        ended.append(subprocess.CompletedProcess(program, int(status.read_text()), *told))
    return ended
