"""Processes of the command line that share one import of JAX.

A server imports the project once and forks a process for each command: as real as one that is
started anew, with its own arguments, folder, environment, output and exit status, and seconds
faster.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

_SERVER = """
import json, os, sys, warnings
import grlu.cli, input_pipeline, models, reports, trainers
import sklearn.datasets, tensorboardX  # What a run imports when it needs it.

def run(request):
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, path in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.close(0)
    sys.argv = ["grlu", *request["arguments"]]
    grlu.cli.main()

print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "poll" in request:
        pid, status = os.waitpid(request["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    with warnings.catch_warnings():
        # JAX has not started its threads yet.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if not pid:
        run(request)
        sys.exit()
    print(json.dumps(pid), flush=True)
"""


class Commands:
    """A server of `grlu` commands.

    Attributes:
        environment: variables of the server, and by default of its commands.
    """

    def __init__(self, environment: Mapping[str, str], options: Sequence[str] = ()):
        self.environment = dict(environment)
        self._server = subprocess.Popen(
            [sys.executable, *options, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def start(
        self, arguments: Sequence[object], cwd: object, **environment: str
    ) -> "RunningCommand":
        """Start a command in a folder, with changes to the environment."""
        folder = pathlib.Path(tempfile.mkdtemp())
        request = {
            "arguments": [str(a) for a in arguments],
            "cwd": str(cwd),
            "env": self.environment | environment,
            "stdout": str(folder / "stdout"),
            "stderr": str(folder / "stderr"),
        }
        return RunningCommand(self, self.ask(request), folder)

    def ask(self, request: object) -> int:
        """Send a request to the server, and return its answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{json.dumps(request)}\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """Stop the server."""
        self._server.communicate()


class RunningCommand:
    """A command that runs, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, commands: Commands, pid: int, folder: pathlib.Path):
        self._commands, self.pid, self._folder = commands, pid, folder
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while the command runs."""
        if self.returncode is None:
            self.returncode = self._commands.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """Return the exit status.

        Raises:
            TimeoutError: after `timeout` seconds; the command is killed.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"a command ran for {timeout} s: {self.output('stderr')}")
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the command."""
        self.send_signal(signal.SIGKILL)

    def output(self, stream: str) -> str:
        """Return what the command has written so far to "stdout" or "stderr"."""
        path = self._folder / stream
        return path.read_text() if path.exists() else ""

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for the end; return stdout and stderr."""
        self.wait(timeout)
        return self.output("stdout"), self.output("stderr")
