#!/usr/bin/env python3
"""A checkpoint engine for programs that can go on from their own files, such as a data base after a crash.

It shows all of the protocol of docs/engines.md. It stops the one process of a job, copies the files that it has open for
writing, and lets it go on. To start the job again it puts the files back and runs the same command in the same directory.
"""
import json
import os
import shutil
import signal
import subprocess
import sys


class Refused(Exception):
    """Why something cannot be done; the user gets to see it."""


class Engine:
    def __init__(self):
        self.root = None
        self.files = None
        self.child = None

    def probe(self, request):
        return {"version": "1.0"}

    def prepare(self, request):
        self.root, self.files = request["root"], request["files"]
        if len(request["processes"]) != 1:
            raise Refused("this engine saves jobs of one process only")
        return {"group": {"kind": "process", "id": str(self.root), "processes": [self.root]}}

    def stop(self, request):
        os.kill(self.root, signal.SIGSTOP)
        return {}

    def checkpoint(self, request):
        saved = []
        for number, path in enumerate(self.written_files()):
            shutil.copyfile(path, os.path.join(self.files, f"file-{number}"))
            saved.append(path)
        proc = f"/proc/{self.root}"
        with open(f"{proc}/cmdline", "rb") as file:
            command = [word.decode("utf-8", "surrogateescape") for word in file.read().split(b"\0")[:-1]]
        with open(os.path.join(self.files, "job.json"), "w") as file:
            json.dump({"command": command, "directory": os.readlink(f"{proc}/cwd"), "files": saved}, file)
        return {}

    def written_files(self):
        """Regular files that the process has open for writing, other than its standard streams."""
        found = set()
        for name in os.listdir(f"/proc/{self.root}/fd"):
            if int(name) <= 2:
                continue
            path = os.readlink(f"/proc/{self.root}/fd/{name}")
            with open(f"/proc/{self.root}/fdinfo/{name}") as file:
                flags = next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))
            if os.path.isfile(path) and flags & os.O_ACCMODE != os.O_RDONLY:
                found.add(path)
        return sorted(found)

    def resume_after_checkpoint(self, request):
        os.kill(self.root, signal.SIGCONT)
        return {}

    def rebuild(self, request):
        with open(os.path.join(request["files"], "job.json")) as file:
            job = json.load(file)
        for number, path in enumerate(job["files"]):
            shutil.copyfile(os.path.join(request["files"], f"file-{number}"), path)
        # Open descriptors that are the job's standard streams.
        streams = request["streams"]
        # The shell stops before it becomes the program, so that nothing of the job runs yet.
        start = ["/bin/sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *job["command"]]
        self.child = subprocess.Popen(
            start, cwd=job["directory"], stdin=streams[0], stdout=streams[1], stderr=streams[2], start_new_session=True
        )
        os.waitid(os.P_PID, self.child.pid, os.WSTOPPED)
        return {"root": self.child.pid}

    def resume_after_restart(self, request):
        os.kill(self.child.pid, signal.SIGCONT)
        return {}


def main():
    engine = Engine()
    for line in sys.stdin:
        request = json.loads(line)
        step = request["step"]
        try:
            answer = {"step": step, "ok": True, **getattr(engine, step)(request)}
        except (Refused, OSError, KeyError, ValueError) as error:
            answer = {"step": step, "ok": False, "error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
